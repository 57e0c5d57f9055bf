/* Serves one client as fast as can be: greets it with "once", and ends. Usage: once PORT */

#include <arpa/inet.h>
#include <stdlib.h>
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
    return write(accept(listener, NULL, NULL), "once\n", 5) != 5;
}
