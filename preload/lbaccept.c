/*
 * lbaccept: a library to preload (LD_PRELOAD) into a program that takes its listening socket from its parent,
 * so that it takes the connections that lb hands over instead (docs/handoff.md).
 *
 *   [pools.app]
 *   handoff = "lb"
 *   [pools.app.workers]
 *   command = ["gunicorn", "--bind", "fd://3", "app:app"]
 *   env = { LD_PRELOAD = "/usr/lib/lb/lbaccept.so" }
 *
 * The program believes that descriptor LB_HANDOFF_FD, or any duplicate of it, is a listening TCP socket:
 * accept and accept4 take the next connection from lb's channel, and what else programs ask of a listening
 * socket is answered here. All other descriptors are the C library's. Only dynamically linked programs that
 * use the C library's functions see it: not Go programs, which have a package of their own, and not Node,
 * which has handoff = "node".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEADER 40   /* bytes before the listener's name; docs/handoff.md */
#define TAKEN 1
#define REFUSED 4
#define KIND_PROBE 2

/* The channel, known by its file: a duplicate has another number, and a closed number may become another file. */
static dev_t channel_dev;
static ino_t channel_ino;

__attribute__((constructor)) static void start(void) {
	const char *number = getenv("LB_HANDOFF_FD");
	struct stat st;
	if (number && *number && fstat(atoi(number), &st) == 0 && S_ISSOCK(st.st_mode)) {
		channel_dev = st.st_dev;
		channel_ino = st.st_ino;
	}
}

static int is_channel(int fd) {
	struct stat st;
	int saved = errno;
	int is = channel_ino != 0 && fstat(fd, &st) == 0 && st.st_ino == channel_ino && st.st_dev == channel_dev;
	errno = saved;
	return is;
}

#define REAL(name) ((__typeof__(&name))real_of(#name))
static void *real_of(const char *name) {
	void *f = dlsym(RTLD_NEXT, name);
	if (!f) abort(); /* there is no C library without it */
	return f;
}

static void say(int fd, unsigned char what) {
	int saved = errno;
	send(fd, &what, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	errno = saved;
}

/* copy_address gives an address as accept(2) and getsockname(2) do: as much as fits, and its whole length. */
static void copy_address(const void *from, socklen_t size, struct sockaddr *to, socklen_t *room) {
	if (!to || !room) return;
	memcpy(to, from, *room < size ? *room : size);
	*room = size;
}

/*
 * watched means that the program waits for the channel with epoll. Then accept never blocks, whatever the
 * channel's flags say: what made it readable may have been a probe, or lb has taken it back, and a program as
 * nginx, which leaves an inherited socket as it is, would serve nobody until the next connection comes.
 */
static int watched;

/* take takes the next connection. It blocks as the channel does, and fails as accept(2). */
static int take(int fd, struct sockaddr *address, socklen_t *room, int flags) {
	for (;;) {
		unsigned char header[256];
		union { struct cmsghdr align; char space[CMSG_SPACE(sizeof(int))]; } control;
		struct iovec vector = {header, sizeof header};
		struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
		ssize_t size = recvmsg(fd, &message, (flags & SOCK_CLOEXEC ? MSG_CMSG_CLOEXEC : 0) | (watched ? MSG_DONTWAIT : 0));
		if (size < 0) return -1;
		if (size == 0) { /* lb is gone: as a listening socket after shutdown(2) */
			errno = EINVAL;
			return -1;
		}
		struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
		if (!rights || rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS) {
			say(fd, REFUSED); /* no room for one more descriptor; lb gives the connection to another worker */
			errno = EMFILE;
			return -1;
		}
		int conn;
		memcpy(&conn, CMSG_DATA(rights), sizeof conn);
		say(fd, TAKEN);
		if (size >= HEADER && header[4] == KIND_PROBE) {
			close(conn);
			continue;
		}
		int now = fcntl(conn, F_GETFL);
		fcntl(conn, F_SETFL, flags & SOCK_NONBLOCK ? now | O_NONBLOCK : now & ~O_NONBLOCK);
		if (address && room) {
			struct sockaddr_storage peer;
			socklen_t length = sizeof peer;
			if (getpeername(conn, (struct sockaddr *)&peer, &length) != 0) { /* it is reset already */
				memset(&peer, 0, sizeof peer);
				peer.ss_family = AF_INET;
				length = sizeof(struct sockaddr_in);
			}
			static const unsigned char none[16];
			if (size >= HEADER && memcmp(header + 16, none, 16) != 0) { /* a PROXY header named the client */
				static const unsigned char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
				memset(&peer, 0, sizeof peer);
				if (memcmp(header + 16, mapped, 12) == 0) {
					struct sockaddr_in *in = (struct sockaddr_in *)&peer;
					in->sin_family = AF_INET;
					memcpy(&in->sin_port, header + 6, 2);
					memcpy(&in->sin_addr, header + 28, 4);
					length = sizeof *in;
				} else {
					struct sockaddr_in6 *in = (struct sockaddr_in6 *)&peer;
					in->sin6_family = AF_INET6;
					memcpy(&in->sin6_port, header + 6, 2);
					memcpy(&in->sin6_addr, header + 16, 16);
					length = sizeof *in;
				}
			}
			copy_address(&peer, length, address, room);
		}
		return conn;
	}
}

int accept4(int fd, struct sockaddr *address, socklen_t *room, int flags) {
	return is_channel(fd) ? take(fd, address, room, flags) : REAL(accept4)(fd, address, room, flags);
}

int accept(int fd, struct sockaddr *address, socklen_t *room) {
	return is_channel(fd) ? take(fd, address, room, 0) : REAL(accept)(fd, address, room);
}

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event) {
	if (operation != EPOLL_CTL_DEL && is_channel(fd)) watched = 1;
	return REAL(epoll_ctl)(epoll, operation, fd, event);
}

int listen(int fd, int backlog) { return is_channel(fd) ? 0 : REAL(listen)(fd, backlog); }

int bind(int fd, const struct sockaddr *address, socklen_t size) {
	return is_channel(fd) ? 0 : REAL(bind)(fd, address, size);
}

/* parse_address reads LB_HANDOFF_ADDRESS, "127.0.0.1:8080" or "[::1]:8080": where clients connect to. */
static socklen_t parse_address(struct sockaddr_storage *out) {
	struct sockaddr_in *in = (struct sockaddr_in *)out;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)out;
	char host[64] = "";
	const char *text = getenv("LB_HANDOFF_ADDRESS");
	const char *colon = text ? strrchr(text, ':') : NULL;
	memset(out, 0, sizeof *out);
	in->sin_family = AF_INET;
	if (!colon) return sizeof *in;
	in->sin_port = htons(atoi(colon + 1));
	int brackets = *text == '[';
	size_t length = colon - text - 2 * brackets;
	if (length >= sizeof host) return sizeof *in;
	memcpy(host, text + brackets, length);
	if (brackets && inet_pton(AF_INET6, host, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6; /* the port is at the same place */
		return sizeof *in6;
	}
	inet_pton(AF_INET, host, &in->sin_addr);
	return sizeof *in;
}

int getsockname(int fd, struct sockaddr *address, socklen_t *room) {
	if (!is_channel(fd)) return REAL(getsockname)(fd, address, room);
	struct sockaddr_storage own;
	socklen_t size = parse_address(&own);
	copy_address(&own, size, address, room);
	return 0;
}

int getsockopt(int fd, int level, int option, void *value, socklen_t *room) {
	if (is_channel(fd)) {
		struct sockaddr_storage own;
		int answer = 0;
		if (level == SOL_SOCKET) {
			switch (option) {
			case SO_TYPE: answer = SOCK_STREAM; break;
			case SO_PROTOCOL: answer = IPPROTO_TCP; break;
			case SO_ACCEPTCONN: answer = 1; break;
			case SO_DOMAIN: parse_address(&own); answer = own.ss_family; break;
			default: return REAL(getsockopt)(fd, level, option, value, room);
			}
		}
		if (*room < sizeof answer) {
			errno = EINVAL;
			return -1;
		}
		memcpy(value, &answer, sizeof answer);
		*room = sizeof answer;
		return 0;
	}
	return REAL(getsockopt)(fd, level, option, value, room);
}

int setsockopt(int fd, int level, int option, const void *value, socklen_t size) {
	return is_channel(fd) ? 0 : REAL(setsockopt)(fd, level, option, value, size);
}
