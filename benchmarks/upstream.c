/* A bare OpenAI-compatible upstream for benchmarks: one thread, epoll, HTTP/1.1 keep-alive.
 *
 *   upstream PORT [CHUNKS] [PACE_MS]
 *
 * A request whose body holds "stream":true is answered with server-sent events: for a model whose
 * name holds "paced", CHUNKS content chunks, one every PACE_MS; for any other model the same short
 * answer as the plain JSON one, in a single write. Everything else gets the plain JSON answer.
 * Every answer reports the same usage, so that whoever pays can be reconciled with whoever asked.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 8192
#define IN_SIZE 65536

typedef struct {
  char in[IN_SIZE];
  int have;
  int chunks_left; /* of a paced stream; -1: none runs */
  double due_ms;
} Conn;

static Conn *conns[MAX_FD];
static int total_chunks = 100;
static double pace_ms = 20;
static char plain[4096], burst[8192], chunk[1024], ending[1024], stream_head[256];
static int plain_len, burst_len, chunk_len, ending_len, stream_head_len;

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static int framed(char *out, const char *data) { /* one HTTP chunk */
  return sprintf(out, "%zx\r\n%s\r\n", strlen(data), data);
}

static void prepare(void) {
  const char *usage = "\"usage\":{\"prompt_tokens\":200,\"completion_tokens\":100,\"total_tokens\":300}";
  char text[700], body[2048], event[2048];
  memset(text, 0, sizeof text);
  for (int i = 0; i < 640; i++) text[i] = "measure twice and cut once. "[i % 28];
  sprintf(body,
          "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\","
          "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
          "\"finish_reason\":\"stop\"}],%s}",
          text, usage);
  plain_len = sprintf(plain,
                      "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                      strlen(body), body);
  stream_head_len = sprintf(stream_head,
                            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                            "Transfer-Encoding: chunked\r\n\r\n");
  const char *head =
      "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
      "\"model\":\"bench\",\"choices\":[";
  sprintf(event,
          "%s{\"index\":0,\"delta\":{\"content\":\"measure twice and cut once, then measure again \"},"
          "\"finish_reason\":null}]}\n\n",
          head);
  chunk_len = framed(chunk, event);
  sprintf(event, "%s{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n%s],%s}\n\ndata: [DONE]\n\n",
          head, head, usage);
  ending_len = framed(ending, event);
  ending_len += sprintf(ending + ending_len, "0\r\n\r\n");
  sprintf(event, "%s{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":null}]}\n\n",
          head, text);
  burst_len = sprintf(burst, "%s", stream_head);
  burst_len += framed(burst + burst_len, event);
  memcpy(burst + burst_len, ending, ending_len);
  burst_len += ending_len;
}

static void drop(int fd) {
  free(conns[fd]);
  conns[fd] = NULL;
  close(fd);
}

static int put(int fd, const char *data, int len) {
  /* Answers are far smaller than a socket buffer: a short write means a reader that does not read. */
  return send(fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT) == len ? 0 : -1;
}

static int answer(int fd, Conn *c, const char *body, int len) {
  int streamed = memmem(body, len, "\"stream\":true", 13) || memmem(body, len, "\"stream\": true", 14);
  if (!streamed) return put(fd, plain, plain_len);
  if (!memmem(body, len, "paced", 5)) return put(fd, burst, burst_len);
  c->chunks_left = total_chunks;
  c->due_ms = now_ms() + pace_ms;
  return put(fd, stream_head, stream_head_len);
}

static int readable(int fd, Conn *c) {
  for (;;) {
    int n = read(fd, c->in + c->have, IN_SIZE - 1 - c->have);
    if (n == 0) return -1;
    if (n < 0) return errno == EAGAIN ? 0 : -1;
    c->have += n;
    c->in[c->have] = 0;
    char *end;
    while ((end = strstr(c->in, "\r\n\r\n"))) {
      char *field = strcasestr(c->in, "\r\ncontent-length:");
      int body = field && field < end ? atoi(field + 17) : 0;
      int head = end + 4 - c->in;
      if (head + body >= IN_SIZE) return -1;
      if (c->have < head + body) break;
      if (answer(fd, c, c->in + head, body) < 0) return -1;
      c->have -= head + body;
      memmove(c->in, c->in + head + body, c->have + 1);
    }
  }
}

static double pace(double now) { /* writes what is due; returns the milliseconds until the next */
  double next = now + 1000;
  for (int fd = 0; fd < MAX_FD; fd++) {
    Conn *c = conns[fd];
    if (!c || c->chunks_left < 0) continue;
    while (c->chunks_left >= 0 && c->due_ms <= now) {
      int failed = c->chunks_left ? put(fd, chunk, chunk_len) : put(fd, ending, ending_len);
      c->chunks_left--;
      c->due_ms += pace_ms;
      if (failed) {
        drop(fd);
        break;
      }
    }
    if (conns[fd] && c->chunks_left >= 0 && c->due_ms < next) next = c->due_ms;
  }
  return next - now;
}

int main(int argc, char **argv) {
  int port = argc > 1 ? atoi(argv[1]) : 9000, one = 1;
  if (argc > 2) total_chunks = atoi(argv[2]);
  if (argc > 3) pace_ms = atof(argv[3]);
  signal(SIGPIPE, SIG_IGN);
  prepare();
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
    perror("upstream");
    return 1;
  }
  int poll = epoll_create1(0);
  struct epoll_event ready[512], want = {.events = EPOLLIN, .data.fd = listener};
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &want);
  double wait = 1000;
  for (;;) {
    int n = epoll_wait(poll, ready, 512, wait < 0 ? 0 : (int)(wait + 0.999));
    for (int i = 0; i < n; i++) {
      int fd = ready[i].data.fd;
      if (fd == listener) {
        while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
          if (fd >= MAX_FD) {
            close(fd);
            continue;
          }
          setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
          conns[fd] = calloc(1, sizeof(Conn));
          conns[fd]->chunks_left = -1;
          want.data.fd = fd;
          epoll_ctl(poll, EPOLL_CTL_ADD, fd, &want);
        }
      } else if (conns[fd] && readable(fd, conns[fd]) < 0) {
        drop(fd);
      }
    }
    wait = pace(now_ms());
  }
}
