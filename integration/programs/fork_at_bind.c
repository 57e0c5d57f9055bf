/* Forks in one thread while another makes the program's first bind: the children bind as well, and all of them have to come back.
   Exits with status 0 when all have. Usage: fork_at_bind PORT */

#include <arpa/inet.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILDREN = 20 };

static int port;
static volatile int started;

static int bind_once(void)
{
    int on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int bound = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(bound, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    return bind(bound, (struct sockaddr *)&address, sizeof address);
}

static void *first(void *unused)
{
    started = 1;
    bind_once();
    return unused;
}

int main(int count, char **arguments)
{
    pthread_t thread;
    int wrong = 0, status;
    if (count != 2)
        return 2;
    port = atoi(arguments[1]);
    pthread_create(&thread, NULL, first, NULL);
    while (!started)
        ;
    for (int number = 0; number < CHILDREN; number++)
        if (fork() == 0)
            _exit(bind_once() != 0);
    while (wait(&status) > 0)
        wrong += status != 0;
    pthread_join(thread, NULL);
    return wrong;
}
