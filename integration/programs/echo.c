/* A server of one's own loop: greets with "echo", and echoes. Usage: echo PORT */

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (count != 2)
        return 2;
    address.sin_port = htons(atoi(arguments[1]));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 10) != 0)
        return 1;
    for (;;) {
        char data[4096];
        ssize_t length = 5;
        int connection = accept(listener, NULL, NULL);
        memcpy(data, "echo\n", 5);
        while (length > 0 && write(connection, data, length) == length)
            length = read(connection, data, sizeof data);
        close(connection);
    }
}
