/* Binds in more than forty ways, and prints what came of each: the name of the attempt, the result, errno, and the socket's name
   afterwards. PORT is one that may be moved, OTHER is not. Usage: probe PORT OTHER */

#include <arpa/inet.h>
#include <errno.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <linux/netlink.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static int port, other;

/* The name of a socket as text. */
static const char *name_of(int file)
{
    static char text[200];
    char ip[INET6_ADDRSTRLEN] = "";
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    memset(&name, 0, sizeof name);
    if (getsockname(file, (struct sockaddr *)&name, &length) != 0) {
        snprintf(text, sizeof text, "no name, errno %d", errno);
    } else if (name.ss_family == AF_INET) {
        struct sockaddr_in *v4 = (struct sockaddr_in *)&name;
        inet_ntop(AF_INET, &v4->sin_addr, ip, sizeof ip);
        snprintf(text, sizeof text, "%s %s %d", ip, ntohs(v4->sin_port) == port ? "PORT" : "", ntohs(v4->sin_port) == other);
    } else if (name.ss_family == AF_INET6) {
        struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&name;
        inet_ntop(AF_INET6, &v6->sin6_addr, ip, sizeof ip);
        snprintf(text, sizeof text, "[%s] %s %d", ip, ntohs(v6->sin6_port) == port ? "PORT" : "", ntohs(v6->sin6_port) == other);
    } else {
        snprintf(text, sizeof text, "family %d", name.ss_family);
    }
    snprintf(text + strlen(text), sizeof text - strlen(text), " length %u", (unsigned)length);
    return text;
}

/* One bind of `file`, which stays open. */
static void attempt(const char *what, int file, const void *address, socklen_t length)
{
    char before[sizeof(struct sockaddr_storage)] = {0};
    size_t kept = address == NULL || length > sizeof before ? 0 : length;
    memcpy(before, kept ? address : before, kept);
    errno = 0;
    int result = bind(file, address, length);
    int error = errno;
    const char *untouched = memcmp(before, kept ? address : before, kept) == 0 ? "" : " ADDRESS CHANGED";
    printf("%s: %d %d (%s)%s\n", what, result, error, file < 0 ? "no socket" : name_of(file), untouched);
}

static struct sockaddr_in v4(const char *ip, int number)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number)};
    inet_pton(AF_INET, ip, &address.sin_addr);
    return address;
}

static struct sockaddr_in6 v6(const char *ip, int number)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_port = htons(number)};
    inet_pton(AF_INET6, ip, &address.sin6_addr);
    return address;
}

static void try_v4(const char *what, int type, int protocol, const char *ip, int number)
{
    struct sockaddr_in address = v4(ip, number);
    int file = socket(AF_INET, type, protocol);
    attempt(what, file, &address, sizeof address);
    close(file);
}

static void try_v6(const char *what, int type, const char *ip, int number, int v6only)
{
    struct sockaddr_in6 address = v6(ip, number);
    int file = socket(AF_INET6, type, 0);
    setsockopt(file, IPPROTO_IPV6, IPV6_V6ONLY, &v6only, sizeof v6only);
    attempt(what, file, &address, sizeof address);
    close(file);
}

/* An address of this many bytes on a TCP socket of its family. */
static void try_length(const char *what, int family, const void *address, socklen_t length)
{
    int file = socket(family, SOCK_STREAM, 0);
    attempt(what, file, address, length);
    close(file);
}

static void try_option(const char *what, int level, int option, const void *value, socklen_t length, const char *ip)
{
    struct sockaddr_in address = v4(ip, port);
    int file = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(file, level, option, value, length);
    attempt(what, file, &address, sizeof address);
    close(file);
}

static void addresses(void)
{
    try_v4("v4 any", SOCK_STREAM, 0, "0.0.0.0", port);
    try_v4("v4 loopback", SOCK_STREAM, 0, "127.0.0.1", port);
    try_v4("v4 other loopback", SOCK_STREAM, 0, "127.0.0.2", port);
    try_v4("v4 not ours", SOCK_STREAM, 0, "192.0.2.1", port);
    try_v4("v4 broadcast", SOCK_STREAM, 0, "255.255.255.255", port);
    try_v4("v4 any port", SOCK_STREAM, 0, "0.0.0.0", 0);
    try_v4("v4 other port", SOCK_STREAM, 0, "127.0.0.1", other);
    try_v4("v4 privileged", SOCK_STREAM, 0, "127.0.0.1", 81);
    try_v4("v4 not ours, other port", SOCK_STREAM, 0, "192.0.2.1", other);
    try_v4("v4 cloexec nonblock", SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, "0.0.0.0", port);
    try_v4("v4 multipath", SOCK_STREAM, IPPROTO_MPTCP, "127.0.0.1", port);
    try_v4("udp any", SOCK_DGRAM, 0, "0.0.0.0", port);
    try_v4("udp loopback", SOCK_DGRAM, 0, "127.0.0.1", port);
    try_v6("v6 any dual", SOCK_STREAM, "::", port, 0);
    try_v6("v6 any only", SOCK_STREAM, "::", port, 1);
    try_v6("v6 loopback", SOCK_STREAM, "::1", port, 0);
    try_v6("v6 loopback only", SOCK_STREAM, "::1", port, 1);
    try_v6("v6 mapped dual", SOCK_STREAM, "::ffff:127.0.0.1", port, 0);
    try_v6("v6 mapped only", SOCK_STREAM, "::ffff:127.0.0.1", port, 1);
    try_v6("v6 not ours", SOCK_STREAM, "2001:db8::1", port, 0);
    try_v6("v6 other port", SOCK_STREAM, "::1", other, 0);
    try_v6("v6 privileged", SOCK_STREAM, "::1", 81, 0);
    try_v6("v6 link-local without scope", SOCK_STREAM, "fe80::1", other, 0);
    try_v6("udp v6", SOCK_DGRAM, "::1", port, 0);
}

static void malformed(void)
{
    struct sockaddr_in four = v4("127.0.0.1", port), unspecified = v4("0.0.0.0", port);
    struct sockaddr_in6 six = v6("::1", port);
    struct sockaddr_storage large;
    int socket_of_unix = socket(AF_UNIX, SOCK_STREAM, 0), pair[2];
    try_length("null", AF_INET, NULL, sizeof four);
    try_length("null, no bytes", AF_INET, NULL, 0);
    try_length("no bytes", AF_INET, &four, 0);
    try_length("one byte", AF_INET, &four, 1);
    try_length("a family", AF_INET, &four, 2);
    try_length("a family and a port", AF_INET, &four, 4);
    try_length("one byte too few", AF_INET, &four, sizeof four - 1);
    try_length("v6 of the old length", AF_INET6, &six, 24);
    try_length("v6 of less", AF_INET6, &six, 23);
    memset(&large, 0, sizeof large);
    memcpy(&large, &four, sizeof four);
    try_length("the longest", AF_INET, &large, sizeof large);
    try_length("longer", AF_INET, &large, sizeof large + 1);
    try_length("a negative length", AF_INET, &four, (socklen_t)-1);
    unspecified.sin_family = AF_UNSPEC;
    try_length("no family, any", AF_INET, &unspecified, sizeof unspecified);
    four.sin_family = AF_UNSPEC;
    try_length("no family, an address", AF_INET, &four, sizeof four);
    four.sin_family = AF_INET;
    try_length("v4 on v6", AF_INET6, &four, sizeof four);
    try_length("v6 on v4", AF_INET, &six, sizeof six);
    attempt("v4 on unix", socket_of_unix, &four, sizeof four);
    attempt("no descriptor", -1, &four, sizeof four);
    pipe(pair);
    attempt("a pipe", pair[0], &four, sizeof four);
}

static void other_families(void)
{
    struct sockaddr_un named = {.sun_family = AF_UNIX}, abstract = {.sun_family = AF_UNIX};
    struct sockaddr_nl netlink = {.nl_family = AF_NETLINK};
    snprintf(named.sun_path, sizeof named.sun_path, "/tmp/probe-%d", (int)getpid());
    snprintf(abstract.sun_path + 1, sizeof abstract.sun_path - 1, "probe-%d", (int)getpid());
    attempt("unix", socket(AF_UNIX, SOCK_STREAM, 0), &named, sizeof named);
    attempt("unix again", socket(AF_UNIX, SOCK_STREAM, 0), &named, sizeof named);
    unlink(named.sun_path);
    attempt("unix abstract", socket(AF_UNIX, SOCK_STREAM, 0), &abstract, sizeof abstract);
    attempt("unix without a name", socket(AF_UNIX, SOCK_STREAM, 0), &named, sizeof(sa_family_t));
    attempt("netlink", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), &netlink, sizeof netlink);
}

static void states(void)
{
    const int on = 1;
    struct sockaddr_in address = v4("127.0.0.1", port), elsewhere = v4("127.0.0.1", other);
    int first = socket(AF_INET, SOCK_STREAM, 0), second = socket(AF_INET, SOCK_STREAM, 0);
    attempt("first", first, &address, sizeof address);
    attempt("first again", first, &address, sizeof address);
    attempt("first elsewhere", first, &elsewhere, sizeof elsewhere);
    listen(first, 1);
    attempt("second, while the first listens", second, &address, sizeof address);
    connect(second, (struct sockaddr *)&elsewhere, sizeof elsewhere);
    close(first);
    close(second);
    try_option("reuse port", SOL_SOCKET, SO_REUSEPORT, &on, sizeof on, "0.0.0.0");
    try_option("bound to a device", SOL_SOCKET, SO_BINDTODEVICE, "lo", 3, "0.0.0.0");
    try_option("free bind", IPPROTO_IP, IP_FREEBIND, &on, sizeof on, "127.0.0.1");
    try_option("no port yet", IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on, "127.0.0.1");
}

/* Gives up the power to bind privileged ports, if we have it. */
static void drop_power(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    syscall(SYS_capget, &header, data);
    data[0].effective &= ~(1U << CAP_NET_BIND_SERVICE);
    syscall(SYS_capset, &header, data);
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    port = atoi(arguments[1]);
    other = atoi(arguments[2]);
    drop_power();
    addresses();
    malformed();
    other_families();
    states();
    return 0;
}
