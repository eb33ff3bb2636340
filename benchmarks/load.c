/* A load generator for benchmarks: one thread, epoll, HTTP/1.1 keep-alive.
 *
 *   load PORT PATH KEY BODY_FILE closed CONCURRENCY SECONDS
 *   load PORT PATH KEY BODY_FILE open   RATE        SECONDS
 *   load PORT PATH KEY BODY_FILE batch  CONCURRENCY REQUESTS
 *
 * closed: that many connections, each asking again as soon as it is answered. open: requests at
 * fixed instants, each timed from the instant it was due, on as many connections as that takes.
 * batch: so many requests in all. Prints one JSON object. A request counts as an error unless its
 * status is 200 and its whole body came; a streamed body must also hold the end mark "[DONE]".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNS 4096
#define IN_SIZE 65536
#define MAX_SAMPLES 4000000

typedef struct {
  int fd, busy, have, headed, chunked, status, done_mark;
  long left; /* bytes left of the body or of the chunk; -1: a chunk's size line is next */
  double due_ms, first_ms;
  char in[IN_SIZE];
} Conn;

static Conn *conns;
static int poll_fd, used, port;
static char request[262144];
static int request_len;
static double *latency, *first;
static long samples, errors, events, bytes_in;

static double now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void dial(Conn *c) {
  int one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
    perror("load: connect");
    exit(1);
  }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  struct epoll_event want = {.events = EPOLLIN, .data.ptr = c};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &want);
}

static void ask(Conn *c, double due) {
  if (c->fd < 0) dial(c);
  c->busy = 1;
  c->have = c->headed = c->chunked = c->status = c->done_mark = 0;
  c->left = 0;
  c->due_ms = due;
  c->first_ms = 0;
  if (send(c->fd, request, request_len, MSG_NOSIGNAL) != request_len) {
    fprintf(stderr, "load: short write\n");
    exit(1);
  }
}

static void finish(Conn *c, int whole) {
  double now = now_ms();
  int streamed = c->chunked && c->done_mark;
  if (!whole || c->status != 200 || (c->chunked && !streamed)) {
    if (errors++ < 3) fprintf(stderr, "load: status %d, whole %d: %.200s\n", c->status, whole, c->in);
  } else if (samples < MAX_SAMPLES) {
    latency[samples] = now - c->due_ms;
    first[samples++] = (c->first_ms ? c->first_ms : now) - c->due_ms;
  }
  c->busy = 0;
  if (!whole) {
    close(c->fd);
    c->fd = -1;
  }
}

static void drop_front(Conn *c, int n) {
  c->have -= n;
  memmove(c->in, c->in + n, c->have + 1);
}

static void body_seen(Conn *c, int n) {
  if (!c->first_ms && memmem(c->in, n, "content", 7)) c->first_ms = now_ms();
  for (char *at = c->in; (at = memmem(at, c->in + n - at, "data: ", 6)); at += 6) events++;
  if (memmem(c->in, n, "[DONE]", 6)) c->done_mark = 1;
}

static int parse(Conn *c) { /* 1: the answer is whole */
  if (!c->headed) {
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    *end = 0;
    c->status = atoi(c->in + 9);
    char *field = strcasestr(c->in, "\r\ncontent-length:");
    c->left = field ? atol(field + 17) : 0;
    c->chunked = strcasestr(c->in, "\r\ntransfer-encoding: chunked") != NULL;
    if (c->chunked) c->left = -1;
    c->headed = 1;
    drop_front(c, end + 4 - c->in);
  }
  while (c->have || (!c->chunked && !c->left)) {
    if (!c->chunked) {
      int n = c->have < c->left ? c->have : c->left;
      c->left -= n;
      drop_front(c, n);
      return c->left == 0;
    }
    if (c->left < 0) {
      char *line = strstr(c->in, "\r\n");
      if (!line) return 0;
      c->left = strtol(c->in, NULL, 16);
      if (c->left == 0) {
        if (c->have < line - c->in + 4) {
          c->left = -1;
          return 0;
        }
        return 1;
      }
      drop_front(c, line + 2 - c->in);
      c->left += 2;
    }
    /* Only whole chunks are looked at, so that no mark is missed at a cut; ours are small. */
    if (c->have < c->left) {
      if (c->left < IN_SIZE - 1) return 0;
      fprintf(stderr, "load: chunk too large\n");
      exit(1);
    }
    body_seen(c, c->left);
    drop_front(c, c->left);
    c->left = -1;
  }
  return 0;
}

static void readable(Conn *c) {
  for (;;) {
    int n = read(c->fd, c->in + c->have, IN_SIZE - 1 - c->have);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      if (c->busy) {
        finish(c, 0);
      } else {
        close(c->fd);
        c->fd = -1;
      }
      return;
    }
    bytes_in += n;
    c->have += n;
    c->in[c->have] = 0;
    if (c->busy && parse(c)) {
      finish(c, 1);
      return;
    }
  }
}

static int by_value(const void *a, const void *b) {
  double d = *(const double *)a - *(const double *)b;
  return d < 0 ? -1 : d > 0;
}

static double at(double *sorted, double quantile) {
  return samples ? sorted[(long)(quantile * (samples - 1))] : 0;
}

int main(int argc, char **argv) {
  if (argc != 8) {
    fprintf(stderr, "usage: load PORT PATH KEY BODY_FILE closed|open|batch N SECONDS|REQUESTS\n");
    return 2;
  }
  port = atoi(argv[1]);
  int closed = argv[5][0] == 'c', open_loop = argv[5][0] == 'o';
  double number = atof(argv[6]), limit = atof(argv[7]);
  static char body[200000];
  FILE *file = fopen(argv[4], "rb");
  if (!file) {
    perror(argv[4]);
    return 2;
  }
  int body_len = fread(body, 1, sizeof body, file);
  request_len = sprintf(request,
                        "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n"
                        "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n",
                        argv[2], argv[3], body_len);
  memcpy(request + request_len, body, body_len);
  request_len += body_len;
  conns = calloc(MAX_CONNS, sizeof(Conn));
  latency = malloc(MAX_SAMPLES * sizeof(double));
  first = malloc(MAX_SAMPLES * sizeof(double));
  for (int i = 0; i < MAX_CONNS; i++) conns[i].fd = -1;
  poll_fd = epoll_create1(0);
  double start = now_ms(), end = closed || open_loop ? start + limit * 1e3 : start + 3.6e6;
  long issued = 0, wanted = closed ? MAX_SAMPLES : open_loop ? (long)(number * limit) : (long)limit;
  used = open_loop ? 1 : (int)number;
  struct epoll_event ready[512];
  int busy = 0;
  for (;;) {
    double now = now_ms();
    if (open_loop) {
      for (; issued < wanted && start + issued * 1e3 / number <= now; issued++) {
        int free = -1;
        for (int i = 0; i < used && free < 0; i++)
          if (!conns[i].busy) free = i;
        if (free < 0 && used < MAX_CONNS) free = used++;
        if (free < 0) {
          errors++;
          continue;
        }
        ask(&conns[free], start + issued * 1e3 / number);
      }
    } else if (now < end) {
      for (int i = 0; i < used && issued < wanted; i++)
        if (!conns[i].busy) ask(&conns[i], now), issued++;
    }
    busy = 0;
    for (int i = 0; i < used; i++) busy += conns[i].busy;
    if (!busy && (now >= end || issued >= wanted)) break;
    if (now > end + 30e3) {
      errors += busy;
      break;
    }
    int wait = 100;
    if (open_loop && issued < wanted) {
      double next = start + issued * 1e3 / number - now;
      wait = next < 0 ? 0 : (int)(next + 0.5);
    }
    int n = epoll_wait(poll_fd, ready, 512, wait);
    for (int i = 0; i < n; i++) readable(ready[i].data.ptr);
  }
  double seconds = (now_ms() - start) / 1e3;
  struct rusage self;
  getrusage(RUSAGE_SELF, &self);
  double cpu = self.ru_utime.tv_sec + self.ru_stime.tv_sec +
               (self.ru_utime.tv_usec + self.ru_stime.tv_usec) / 1e6;
  qsort(latency, samples, sizeof(double), by_value);
  qsort(first, samples, sizeof(double), by_value);
  printf("{\"requests\": %ld, \"errors\": %ld, \"seconds\": %.3f, \"rps\": %.1f, \"p50_ms\": %.3f, "
         "\"p99_ms\": %.3f, \"first_p50_ms\": %.3f, \"first_p99_ms\": %.3f, \"events\": %ld, "
         "\"bytes\": %ld, \"own_cpu_s\": %.3f, \"connections\": %d}\n",
         samples, errors, seconds, samples / seconds, at(latency, .5), at(latency, .99),
         at(first, .5), at(first, .99), events, bytes_in, cpu, used);
  return errors ? 1 : 0;
}
