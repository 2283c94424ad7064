// The load generator of benchmarks/gateway.py: many connections from one thread, as cheap for the
// machine as can be, so that what is measured is the server.
//
//     load talk|listen|hold|http NAME=VALUE...
//
// All modes open `connections` to 127.0.0.1:`port` and, but for http, upgrade them at `path`.
//
//   talk    keep `in_flight` frames unanswered on each until each has sent `messages`. An answer
//           belongs to the oldest frame of its connection that has none yet.
//   listen  read until each has got `messages`.
//   hold    keep them open until told to go on, then count those that answer a ping.
//   http    `messages` requests on each, one after the other; connects again where the server
//           closes.
//
// A frame from the server counts as a message if it begins with `counts`; one that begins with
// `ignores` does not; any other is wrong and is reported. What is sent lies ready in the file
// `frames`, masked before the clock starts. The first `warm_up` answers of all are not measured.
//
// Standard input and output carry blocks of a 32-bit length and as many bytes: with `hello` the
// first frame of each connection goes out, then `asks` times a frame comes in, is sent, and its
// answer goes out. When all are open "ready" goes out, and any block that comes in starts the
// measured part; the result goes out as JSON. A run is over after `seconds_max`, done or not.

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

constexpr size_t READ_BYTES = 1 << 18;
constexpr size_t BLOCK_BYTES_MAX = 1 << 24;
constexpr int EVENTS = 256;
constexpr size_t OPENED_AT_ONCE = 256;
constexpr int ANSWER_SECONDS_MAX = 30;  // while connections are opened, one by one

[[noreturn]] void fail(const std::string& what) {
  fprintf(stderr, "load: %s\n", what.c_str());
  exit(3);
}

uint64_t clock_ns(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1'000'000'000ull + now.tv_nsec;
}

// --- what the command line says -----------------------------------------------------------------

struct Options {
  std::map<std::string, std::string> given;

  const std::string& text(const char* name) const {
    auto found = given.find(name);
    if (found == given.end()) fail(std::string("missing: ") + name);
    return found->second;
  }
  size_t number(const char* name) const { return std::stoull(text(name)); }
};

// --- pipes to whoever started this --------------------------------------------------------------

void write_all(int fd, const void* data, size_t size) {
  auto* at = static_cast<const char*>(data);
  while (size) {
    ssize_t n = write(fd, at, size);
    if (n <= 0) fail("nobody reads what goes out");
    at += n, size -= n;
  }
}

void read_all(int fd, void* data, size_t size) {
  auto* at = static_cast<char*>(data);
  while (size) {
    ssize_t n = read(fd, at, size);
    if (n <= 0) fail("nobody sends what should come in");
    at += n, size -= n;
  }
}

void put_block(std::string_view block) {
  uint32_t size = block.size();
  write_all(STDOUT_FILENO, &size, sizeof size);
  write_all(STDOUT_FILENO, block.data(), size);
}

std::string get_block() {
  uint32_t size = 0;
  read_all(STDIN_FILENO, &size, sizeof size);
  if (size > BLOCK_BYTES_MAX) fail("too long a block");
  std::string block(size, '\0');
  read_all(STDIN_FILENO, block.data(), size);
  return block;
}

// --- frames out ---------------------------------------------------------------------------------

enum Opcode : uint8_t { TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

// RFC 6455, 5.2: a whole frame, masked as a client must.
void append_frame(std::string& out, Opcode opcode, std::string_view payload) {
  static std::minstd_rand random(7);
  out += static_cast<char>(0x80 | opcode);
  if (payload.size() < 126) {
    out += static_cast<char>(0x80 | payload.size());
  } else {
    if (payload.size() > 0xffff) fail("too long a frame to send");
    out += static_cast<char>(0x80 | 126);
    out += static_cast<char>(payload.size() >> 8);
    out += static_cast<char>(payload.size());
  }
  char mask[4];
  for (char& byte : mask) byte = static_cast<char>(random() >> 8);
  out.append(mask, sizeof mask);
  for (size_t i = 0; i < payload.size(); i++) out += static_cast<char>(payload[i] ^ mask[i & 3]);
}

// One after the other, ready to send; `ends[i]` is where message i ends.
struct Script {
  std::string bytes;
  std::vector<size_t> ends;
};

// The file: scripts, messages in each; then each message with its length; 32-bit numbers. Where
// more messages are wanted than a script has it begins anew.
std::vector<Script> read_scripts(const std::string& path, size_t messages, bool is_http) {
  FILE* file = fopen(path.c_str(), "rb");
  if (!file) fail("cannot open " + path);
  auto number = [file] {
    uint32_t value;
    if (fread(&value, sizeof value, 1, file) != 1) fail("the file of frames is cut short");
    return value;
  };
  std::vector<Script> scripts(number());
  std::vector<std::string> found(number());
  if (scripts.empty() || found.empty()) fail("the file of frames is empty");
  for (Script& script : scripts) {
    for (std::string& message : found) {
      message.resize(number());
      if (fread(message.data(), 1, message.size(), file) != message.size())
        fail("the file of frames is cut short");
    }
    for (size_t i = 0; i < messages; i++) {
      const std::string& message = found[i % found.size()];
      if (is_http) script.bytes += message;
      else append_frame(script.bytes, TEXT, message);
      script.ends.push_back(script.bytes.size());
    }
  }
  fclose(file);
  return scripts;
}

// --- one connection -----------------------------------------------------------------------------

struct Connection {
  int fd = -1;
  const Script* script = nullptr;
  size_t sent = 0;      // messages given to the socket, or about to be
  size_t answered = 0;  // or, where nothing is sent, heard
  size_t written = 0;   // bytes of the script
  bool awaits_room = false;
  bool has_pong = false;
  std::string left;   // the beginning of a frame whose rest has not come
  std::string pongs;  // to be sent between two messages
  std::vector<uint64_t> sent_ns;  // a ring, as long as what may be in flight

  size_t unwritten_end() const { return sent ? script->ends[sent - 1] : 0; }
};

int connect_to(uint16_t port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail(std::string("socket: ") + strerror(errno));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address))
    fail(std::string("connect: ") + strerror(errno));
  int yes = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  timeval patience{ANSWER_SECONDS_MAX, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  return fd;
}

// While connections are opened, one by one: waits.
void send_now(int fd, std::string_view data) {
  while (!data.empty()) {
    ssize_t n = send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (n <= 0) fail(std::string("send: ") + strerror(errno));
    data.remove_prefix(n);
  }
}

void receive_more(Connection& c) {
  char buffer[1 << 16];
  ssize_t n = recv(c.fd, buffer, sizeof buffer, 0);
  if (n == 0) fail("the server closed while connections were opened");
  if (n < 0) fail(std::string("recv: ") + strerror(errno));
  c.left.append(buffer, n);
}

void upgrade(Connection& c, const std::string& path) {
  send_now(c.fd, "GET " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                 "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                 "Sec-WebSocket-Version: 13\r\n\r\n");
  size_t end;
  while ((end = c.left.find("\r\n\r\n")) == std::string::npos) receive_more(c);
  if (c.left.compare(0, 12, "HTTP/1.1 101") != 0) fail("no upgrade: " + c.left.substr(0, end));
  c.left.erase(0, end + 4);
}

// --- frames in ----------------------------------------------------------------------------------

struct Frame {
  uint8_t opcode;
  std::string_view payload;
  size_t size;  // with its header
};

// The frame `data` begins with; false if it is not there whole.
bool parse(std::string_view data, Frame& frame) {
  if (data.size() < 2) return false;
  auto byte = [data](size_t i) { return static_cast<uint8_t>(data[i]); };
  if ((byte(0) & 0xf0) != 0x80) fail("a fragment, or bits that nobody agreed upon");
  if (byte(1) & 0x80) fail("a server must not mask");
  size_t header = 2, length = byte(1);
  if (length >= 126) {
    size_t digits = length == 126 ? 2 : 8;
    header += digits, length = 0;
    if (data.size() < header) return false;
    for (size_t i = 2; i < header; i++) length = length << 8 | byte(i);
  }
  if (data.size() < header + length) return false;
  frame = {static_cast<uint8_t>(byte(0) & 0x0f), data.substr(header, length), header + length};
  return true;
}

void note_control(Connection& c, const Frame& frame) {
  if (frame.opcode == CLOSE) {
    size_t code = frame.payload.size() < 2 ? 0
        : static_cast<uint8_t>(frame.payload[0]) << 8 | static_cast<uint8_t>(frame.payload[1]);
    fail("closed by the server: " + std::to_string(code) + " " +
         std::string(frame.payload.substr(std::min<size_t>(2, frame.payload.size()))));
  }
  if (frame.opcode == PING) append_frame(c.pongs, PONG, frame.payload);
  if (frame.opcode == PONG) c.has_pong = true;
}

// --- the run ------------------------------------------------------------------------------------

class Run {
 public:
  explicit Run(const Options& options)
      : options_(options),
        mode_(options.text("mode")),
        counts_(options.text("counts")),
        ignores_(options.text("ignores")),
        messages_(options.number("messages")),
        in_flight_(options.number("in_flight")),
        warm_up_(options.number("warm_up")),
        connections_(options.number("connections")),
        buffer_(READ_BYTES, '\0') {
    if (mode_ == "talk" || mode_ == "http")
      scripts_ = read_scripts(options.text("frames"), messages_, mode_ == "http");
    wanted_ = mode_ == "hold" ? connections_.size() : messages_ * connections_.size();
    if (mode_ == "talk" || mode_ == "http") delays_.reserve(wanted_);
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
  }

  void open() {
    for (size_t i = 0; i < connections_.size(); i++) {
      Connection& c = connections_[i];
      c.fd = connect_to(options_.number("port"));
      if (!scripts_.empty()) c.script = &scripts_[i % scripts_.size()];
      c.sent_ns.resize(in_flight_);
      if (mode_ != "http") {
        upgrade(c, options_.text("path"));
        if (options_.number("hello")) put_block(next_data(c));
        for (size_t asks = options_.number("asks"); asks; asks--) {
          std::string frame;
          append_frame(frame, TEXT, get_block());
          send_now(c.fd, frame);
          put_block(next_data(c));
        }
      }
      watch(c, EPOLL_CTL_ADD);
      if (i % OPENED_AT_ONCE == 0) answer_pings();
    }
    answer_pings();
    put_block("ready");
    get_block();
  }

  void measure() {
    if (warm_up_ == 0) begin();
    for (Connection& c : connections_) {
      if (mode_ == "talk" || mode_ == "http") send_more(c, std::min(in_flight_, messages_));
      if (mode_ == "hold") {
        append_frame(c.pongs, PING, "");
        flush(c);
      }
      if (!c.left.empty() && mode_ != "http") take(c, std::exchange(c.left, {}));
    }
    epoll_event events[EVENTS];
    while (done_ < wanted_) {
      int count = epoll_wait(epoll_, events, EVENTS, -1);
      if (count < 0 && errno != EINTR) fail(std::string("epoll_wait: ") + strerror(errno));
      for (int i = 0; i < count; i++) {
        Connection& c = *static_cast<Connection*>(events[i].data.ptr);
        if (events[i].events & EPOLLOUT) flush(c);
        if (events[i].events & ~EPOLLOUT) receive(c);
      }
    }
    end_ns_ = clock_ns(CLOCK_MONOTONIC);
    end_own_ns_ = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    end_server_ns_ = server_cpu_ns();
  }

  // As a client should: the connections themselves end with this process.
  void say_goodbye() {
    std::string frame;
    append_frame(frame, CLOSE, "\x03\xe8");  // 1000: normal
    for (Connection& c : connections_) send(c.fd, frame.data(), frame.size(), MSG_NOSIGNAL);
  }

  void report() {
    double seconds = (end_ns_ - begin_ns_) / 1e9;
    std::sort(delays_.begin(), delays_.end());
    auto percentile = [this](size_t percent) {
      return delays_.empty() ? 0.0 : delays_[(delays_.size() * percent + 99) / 100 - 1] / 1e3;
    };
    char text[1024];
    snprintf(text, sizeof text,
             "{\"messages\": %zu, \"seconds\": %.9f, \"p50_us\": %.3f, \"p99_us\": %.3f, "
             "\"own_cpu_share\": %.4f, \"server_cpu_s\": %.9f, \"wrong\": %zu, \"bytes\": %zu, "
             "\"begin_ns\": %llu, \"end_ns\": %llu}",
             done_ - before_, seconds, percentile(50), percentile(99),
             (end_own_ns_ - begin_own_ns_) / 1e9 / seconds,
             (end_server_ns_ - begin_server_ns_) / 1e9, wrong_, bytes_,
             static_cast<unsigned long long>(begin_ns_), static_cast<unsigned long long>(end_ns_));
    put_block(text);
    if (wrong_) fprintf(stderr, "load: the first wrong one: %s\n", first_wrong_.c_str());
  }

 private:
  std::string next_data(Connection& c) {
    while (true) {
      Frame frame;
      while (parse(c.left, frame)) {
        std::string payload(frame.payload);
        bool is_data = frame.opcode == TEXT || frame.opcode == BINARY;
        if (!is_data) note_control(c, frame);
        c.left.erase(0, frame.size);
        if (is_data && !is_ignored(payload)) return payload;
      }
      receive_more(c);
    }
  }

  // While others are still opened: what else comes is kept for later.
  void answer_pings() {
    epoll_event events[EVENTS];
    for (int count; mode_ != "http" && (count = epoll_wait(epoll_, events, EVENTS, 0)) > 0;) {
      for (int i = 0; i < count; i++) {
        Connection& c = *static_cast<Connection*>(events[i].data.ptr);
        receive_more(c);
        std::string kept;
        std::string_view data = c.left;
        for (Frame frame; parse(data, frame); data.remove_prefix(frame.size)) {
          if (frame.opcode != TEXT && frame.opcode != BINARY) note_control(c, frame);
          else if (!is_ignored(frame.payload)) kept += data.substr(0, frame.size);
        }
        kept += data;
        c.left = kept;
        if (!c.pongs.empty()) flush(c);
      }
    }
  }

  bool is_ignored(std::string_view payload) const {
    return !ignores_.empty() && payload.starts_with(ignores_);
  }

  void watch(Connection& c, int operation) {
    if (operation == EPOLL_CTL_ADD) fcntl(c.fd, F_SETFL, fcntl(c.fd, F_GETFL) | O_NONBLOCK);
    epoll_event event{};
    event.events = c.awaits_room ? EPOLLIN | EPOLLOUT : EPOLLIN;
    event.data.ptr = &c;
    if (epoll_ctl(epoll_, operation, c.fd, &event)) fail("epoll_ctl");
  }

  void begin() {
    before_ = done_;
    delays_.clear();
    begin_server_ns_ = server_cpu_ns();
    begin_own_ns_ = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    begin_ns_ = clock_ns(CLOCK_MONOTONIC);
  }

  // Of all threads that live; to the nanosecond, where getrusage counts ticks.
  uint64_t server_cpu_ns() const {
    std::string directory = "/proc/" + options_.text("pid") + "/task";
    DIR* threads = opendir(directory.c_str());
    if (!threads) fail("the server is gone");
    uint64_t total = 0;
    while (dirent* entry = readdir(threads)) {
      if (entry->d_name[0] == '.') continue;
      FILE* file = fopen((directory + "/" + entry->d_name + "/schedstat").c_str(), "r");
      unsigned long long ran = 0;
      if (file && fscanf(file, "%llu", &ran) == 1) total += ran;
      if (file) fclose(file);
    }
    closedir(threads);
    return total;
  }

  void send_more(Connection& c, size_t count) {
    count = std::min(count, messages_ - c.sent);
    uint64_t now = clock_ns(CLOCK_MONOTONIC);
    for (size_t i = 0; i < count; i++) c.sent_ns[c.sent++ % in_flight_] = now;
    flush(c);
  }

  void flush(Connection& c) {
    bool is_full = false;
    while (!is_full && c.written < c.unwritten_end())
      is_full = !send_some(c, c.script->bytes.data() + c.written, c.unwritten_end() - c.written,
                           c.written);
    size_t written = 0;
    while (!is_full && written < c.pongs.size())
      is_full = !send_some(c, c.pongs.data() + written, c.pongs.size() - written, written);
    if (is_full && written) fail("a pong that is cut");  // small, and the socket takes kilobytes
    if (!is_full) c.pongs.clear();
    if (is_full != c.awaits_room) {
      c.awaits_room = is_full;
      watch(c, EPOLL_CTL_MOD);
    }
  }

  bool send_some(Connection& c, const char* data, size_t size, size_t& written) {
    ssize_t n = send(c.fd, data, size, MSG_NOSIGNAL);
    if (n >= 0) {
      written += n;
      return true;
    }
    if (errno != EAGAIN && errno != EINTR) fail(std::string("send: ") + strerror(errno));
    return errno == EINTR;
  }

  void receive(Connection& c) {
    ssize_t n = recv(c.fd, buffer_.data(), buffer_.size(), 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) fail(std::string("recv: ") + strerror(errno));
    if (n == 0) {
      if (mode_ != "http") fail("the server closed a connection without a word");
      reconnect(c);
      return;
    }
    std::string_view data(buffer_.data(), n);
    if (!c.left.empty()) {
      std::string joined = std::exchange(c.left, {});
      joined += data;
      take(c, joined);
    } else {
      take(c, data);
    }
  }

  void take(Connection& c, std::string_view data) {
    size_t before = c.answered;
    now_ns_ = clock_ns(CLOCK_MONOTONIC);
    data.remove_prefix(mode_ == "http" ? take_answers(c, data) : take_frames(c, data));
    c.left = data;
    if (mode_ == "talk" || mode_ == "http") send_more(c, c.answered - before);
    else if (!c.pongs.empty()) flush(c);
  }

  size_t take_frames(Connection& c, std::string_view data) {
    Frame frame;
    size_t used = 0;
    while (parse(data.substr(used), frame)) {
      used += frame.size;
      if (frame.opcode != TEXT && frame.opcode != BINARY) {
        bool had = c.has_pong;
        note_control(c, frame);
        if (mode_ == "hold" && c.has_pong && !had) done_++;
      } else if (frame.payload.starts_with(counts_)) {
        count_message(c, frame.size);
      } else if (!is_ignored(frame.payload)) {
        note_wrong(frame.payload);
        count_message(c, frame.size);  // it answers, if wrongly: go on
      }
    }
    return used;
  }

  size_t take_answers(Connection& c, std::string_view data) {
    size_t used = 0;
    while (true) {
      std::string_view rest = data.substr(used);
      size_t head = rest.find("\r\n\r\n");
      if (head == std::string_view::npos) return used;
      size_t length = 0;
      for (size_t at = 0; at < head; at = rest.find("\r\n", at) + 2)
        if (!strncasecmp(rest.data() + at, "content-length:", 15))
          length = strtoull(rest.data() + at + 15, nullptr, 10);
      if (rest.size() < head + 4 + length) return used;
      if (!rest.starts_with(counts_)) note_wrong(rest.substr(0, head));
      used += head + 4 + length;
      count_message(c, length);
    }
  }

  // A server that keeps no connection is asked again on a new one.
  void reconnect(Connection& c) {
    close(c.fd);
    c.left.clear();
    if (c.answered == messages_) return;
    if (c.sent > c.answered) c.sent = c.answered;  // what was on its way got lost: ask again
    c.written = c.unwritten_end();
    c.fd = connect_to(options_.number("port"));
    c.awaits_room = false;
    watch(c, EPOLL_CTL_ADD);
    send_more(c, in_flight_);
  }

  void note_wrong(std::string_view payload) {
    if (!wrong_++) first_wrong_ = payload;
  }

  void count_message(Connection& c, size_t size) {
    if (mode_ == "hold") return;
    if (c.answered == messages_) fail("more frames than were asked for");
    if (mode_ != "listen") {
      if (c.answered == c.sent) fail("an answer to nothing");
      delays_.push_back(now_ns_ - c.sent_ns[c.answered % in_flight_]);
    }
    c.answered++;
    bytes_ += size;
    if (++done_ == warm_up_) begin();
  }

  const Options& options_;
  const std::string mode_, counts_, ignores_;
  const size_t messages_, in_flight_, warm_up_;
  std::vector<Connection> connections_;
  std::vector<Script> scripts_;
  std::string buffer_, first_wrong_;
  std::vector<uint64_t> delays_;
  int epoll_ = -1;
  size_t wanted_ = 0, done_ = 0, before_ = 0, wrong_ = 0, bytes_ = 0;
  uint64_t now_ns_ = 0, begin_ns_ = 0, end_ns_ = 0;
  uint64_t begin_own_ns_ = 0, end_own_ns_ = 0, begin_server_ns_ = 0, end_server_ns_ = 0;
};

}  // namespace

int main(int count, char** words) {
  Options options;
  if (count > 1) options.given["mode"] = words[1];
  for (int i = 2; i < count; i++) {
    std::string word = words[i];
    size_t equals = word.find('=');
    if (equals == std::string::npos) fail("not NAME=VALUE: " + word);
    options.given[word.substr(0, equals)] = word.substr(equals + 1);
  }
  alarm(options.number("seconds_max"));  // its default is to end the process
  rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  Run run(options);
  run.open();
  run.measure();
  if (options.text("mode") != "http") run.say_goodbye();
  run.report();
}
