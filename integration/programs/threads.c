/* Binds in many threads at once while signals interrupt them. Exits with the number of binds that went wrong.
   Usage: threads PORT */

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

enum { THREADS = 16, ROUNDS = 50 };

static int port;
static int wrong;
static int finished;
static volatile int done;

static void nothing(int number)
{
    (void)number;
}

/* Binds the port with SO_REUSEPORT, which all threads may; a second bind of the same socket is an error. */
static void *bind_often(void *unused)
{
    for (int round = 0; round < ROUNDS; round++) {
        int on = 1;
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
        int bound = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(bound, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
        if (bind(bound, (struct sockaddr *)&address, sizeof address) != 0)
            __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        if (bind(bound, (struct sockaddr *)&address, sizeof address) != -1 || errno != EINVAL)
            __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        close(bound);
    }
    __atomic_add_fetch(&finished, 1, __ATOMIC_RELEASE);
    return unused;
}

static void *interrupt(void *threads)
{
    while (!done) {
        for (int number = 0; number < THREADS; number++)
            pthread_kill(((pthread_t *)threads)[number], SIGUSR1);
        usleep(200);
    }
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS], interrupter;
    struct sigaction action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    if (count != 2)
        return 2;
    port = atoi(arguments[1]);
    sigaction(SIGUSR1, &action, NULL);
    for (int number = 0; number < THREADS; number++)
        pthread_create(&threads[number], NULL, bind_often, NULL);
    pthread_create(&interrupter, NULL, interrupt, threads);
    while (__atomic_load_n(&finished, __ATOMIC_ACQUIRE) < THREADS)
        usleep(1000);
    done = 1;
    pthread_join(interrupter, NULL);
    for (int number = 0; number < THREADS; number++)
        pthread_join(threads[number], NULL);
    return wrong > 100 ? 100 : wrong;
}
