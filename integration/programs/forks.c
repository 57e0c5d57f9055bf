/* Fifty processes that all bind the same port with SO_REUSEPORT, as servers with a process per core do. Each greets with "echo"
   and echoes. Exits with status 1 if one of them cannot bind. Usage: forks PORT */

#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PROCESSES = 50 };

static void serve(int port)
{
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 10) != 0)
        _exit(1);
    for (;;) {
        char data[4096] = "echo\n";
        ssize_t length = 5;
        int connection = accept(listener, NULL, NULL);
        while (length > 0 && write(connection, data, length) == length)
            length = read(connection, data, sizeof data);
        close(connection);
    }
}

int main(int count, char **arguments)
{
    int status;
    if (count != 2)
        return 2;
    for (int number = 0; number < PROCESSES; number++)
        if (fork() == 0)
            serve(atoi(arguments[1]));
    wait(&status);
    return 1;
}
