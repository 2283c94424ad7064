// The yardstick: a bare ladder, the least that an order book can do and still fill correctly.
//
//     ladder FILE PRELOAD      replay FILE, time all but its first PRELOAD records, print JSON
//
// No accounts, no reserve, no self-trade prevention, no events. Orders are found by their dense
// numbers, a level is a tick, both sides share one array of levels, bitmaps say which are occupied,
// and the range of prices of every book is known before the clock starts. A real engine has none of
// these favours; it is measured in multiples of this. With -DVERIFY fills are hashed too.

#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

namespace {

enum class Op : std::uint8_t { limit = 0, cancel = 1, immediate = 2 };
constexpr std::uint8_t kBuy = 0;

struct Record {
  std::uint64_t id;
  std::int64_t price_ticks;
  std::uint32_t qty_lots;
  std::uint32_t instrument;
  Op op;
  std::uint8_t side;
  std::uint8_t zero[6];
};
static_assert(sizeof(Record) == 32);

struct Totals {
  std::uint64_t fills = 0;
  std::uint64_t volume = 0;
  std::uint64_t hash = 1469598103934665603u;

  [[gnu::always_inline]] void fill(std::uint64_t maker, std::uint64_t taker, std::uint64_t lots,
                                   std::uint64_t price_ticks) {
    ++fills;
    volume += lots;
#ifdef VERIFY
    const std::uint64_t mixed = maker * 0x9E3779B97F4A7C15u + taker * 0xC2B2AE3D27D4EB4Fu +
                                lots * 0x165667B19E3779F9u + price_ticks;
    hash = (hash ^ mixed) * 1099511628211u;
#else
    (void)maker, (void)taker, (void)price_ticks;
#endif
  }
};

struct Order {
  std::uint32_t behind;
  std::uint32_t ahead;
  std::uint32_t lots;  // 0: not on a book
  std::uint32_t tick;  // << 1 | side
};
static_assert(sizeof(Order) == 16);

struct Level {
  std::uint32_t first;
  std::uint32_t last;
};

// The levels of one instrument. Bit t of `bits` says that tick t has orders, bit w of `words` that
// word w of `bits` is not zero. Ticks count from the lowest price of the stream.
struct Book {
  Level* levels = nullptr;
  std::uint64_t* bits = nullptr;
  std::uint64_t* words = nullptr;
  std::uint32_t word_count = 0;  // of `words`
  std::uint32_t lowest_ticks = 0;
  std::int32_t ticks = 0;
  std::int32_t bid = -1;  // below every tick: no bid
  std::int32_t ask = 0;   // `ticks`, above every tick: no ask

  void occupy(std::uint32_t tick) {
    bits[tick >> 6] |= 1ull << (tick & 63);
    words[tick >> 12] |= 1ull << (tick >> 6 & 63);
  }

  void vacate(std::uint32_t tick) {
    const std::uint64_t left = bits[tick >> 6] &= ~(1ull << (tick & 63));
    if (left == 0) words[tick >> 12] &= ~(1ull << (tick >> 6 & 63));
  }

  // The next occupied tick above, or `ticks`.
  std::int32_t above(std::uint32_t tick) const {
    std::uint32_t word = tick >> 6;
    std::uint64_t found = bits[word] & (~1ull << (tick & 63));
    if (found == 0) {
      std::uint32_t group = word >> 6;
      std::uint64_t some = words[group] & (~1ull << (word & 63));
      while (some == 0) {
        if (++group == word_count) return ticks;
        some = words[group];
      }
      word = group << 6 | static_cast<std::uint32_t>(std::countr_zero(some));
      found = bits[word];
    }
    return static_cast<std::int32_t>(word << 6) + std::countr_zero(found);
  }

  // The next occupied tick below, or -1.
  std::int32_t below(std::uint32_t tick) const {
    std::uint32_t word = tick >> 6;
    std::uint64_t found = bits[word] & ~(~0ull << (tick & 63));
    if (found == 0) {
      std::uint32_t group = word >> 6;
      std::uint64_t some = words[group] & ~(~0ull << (word & 63));
      while (some == 0) {
        if (group == 0) return -1;
        some = words[--group];
      }
      word = group << 6 | static_cast<std::uint32_t>(63 - std::countl_zero(some));
      found = bits[word];
    }
    return static_cast<std::int32_t>(word << 6) + 63 - std::countl_zero(found);
  }
};

class Ladder {
 public:
  explicit Ladder(std::span<const Record> records) {
    struct Range {
      std::int64_t lowest = INT64_MAX, highest = 0;
    };
    std::vector<Range> ranges;
    std::uint64_t highest_id = 0;
    for (const Record& record : records) {
      if (record.instrument >= ranges.size()) ranges.resize(record.instrument + 1);
      if (record.op == Op::cancel) continue;
      Range& range = ranges[record.instrument];
      if (record.price_ticks < range.lowest) range.lowest = record.price_ticks;
      if (record.price_ticks > range.highest) range.highest = record.price_ticks;
      if (record.id > highest_id) highest_id = record.id;
    }
    orders_ = static_cast<Order*>(std::calloc(highest_id + 1, sizeof(Order)));
    std::size_t ticks = 0, words = 0;
    for (Range& range : ranges) {
      if (range.lowest > range.highest) range = {1, 1};
      Book& book = books_.emplace_back();
      book.lowest_ticks = static_cast<std::uint32_t>(range.lowest);
      book.ticks = book.ask = static_cast<std::int32_t>(range.highest - range.lowest + 1);
      book.word_count = (bit_words(book) + 63) / 64;
      ticks += static_cast<std::size_t>(book.ticks);
      words += bit_words(book) + book.word_count;
    }
    levels_.resize(ticks);
    bits_.resize(words);
    Level* level = levels_.data();
    std::uint64_t* bits = bits_.data();
    for (Book& book : books_) {
      book.levels = level;
      book.bits = bits;
      book.words = bits + bit_words(book);
      level += book.ticks;
      bits = book.words + book.word_count;
    }
  }

  [[gnu::noinline]] void play(std::span<const Record> records) {
    for (const Record& record : records) {
      if (record.op == Op::cancel) {
        cancel(books_[record.instrument], static_cast<std::uint32_t>(record.id));
      } else if (record.side == kBuy) {
        submit<true>(record);
      } else {
        submit<false>(record);
      }
    }
  }

  Totals totals;

 private:
  static std::uint32_t bit_words(const Book& book) {
    return (static_cast<std::uint32_t>(book.ticks) + 63) / 64;
  }

  template <bool buy>
  [[gnu::always_inline]] void submit(const Record& record) {
    Book& book = books_[record.instrument];
    const auto id = static_cast<std::uint32_t>(record.id);
    const auto tick = static_cast<std::int32_t>(record.price_ticks - book.lowest_ticks);
    const std::uint32_t left = take<buy>(book, id, tick, record.qty_lots);
    if (left == 0 || record.op == Op::immediate) return;
    Level& level = book.levels[tick];
    orders_[id] = {0, level.last, left, static_cast<std::uint32_t>(tick) << 1 | !buy};
    if (level.last != 0) {
      orders_[level.last].behind = id;
    } else {
      level.first = id;
      book.occupy(static_cast<std::uint32_t>(tick));
      if (buy ? tick > book.bid : tick < book.ask) (buy ? book.bid : book.ask) = tick;
    }
    level.last = id;
  }

  // Trade up to this limit; what is left of the taker.
  template <bool buy>
  [[gnu::always_inline]] std::uint32_t take(Book& book, std::uint32_t taker, std::int32_t limit,
                                            std::uint32_t lots) {
    std::int32_t& best = buy ? book.ask : book.bid;
    while (buy ? best <= limit : best >= limit) {
      const auto tick = static_cast<std::uint32_t>(best);
      const std::uint32_t price_ticks = book.lowest_ticks + tick;
      Level& level = book.levels[tick];
      std::uint32_t id = level.first;
      do {
        Order& maker = orders_[id];
        if (maker.lots > lots) {
          totals.fill(id, taker, lots, price_ticks);
          maker.lots -= lots;
          lots = 0;
          break;
        }
        totals.fill(id, taker, maker.lots, price_ticks);
        lots -= maker.lots;
        maker.lots = 0;
        id = maker.behind;
      } while (lots != 0 && id != 0);
      if (id != 0) {
        level.first = id;
        orders_[id].ahead = 0;
        return 0;
      }
      level = {};
      book.vacate(tick);
      best = buy ? book.above(tick) : book.below(tick);
      if (lots == 0) return 0;
    }
    return lots;
  }

  [[gnu::always_inline]] void cancel(Book& book, std::uint32_t id) {
    Order& order = orders_[id];
    if (order.lots == 0) return;
    order.lots = 0;
    const std::uint32_t tick = order.tick >> 1;
    Level& level = book.levels[tick];
    (order.ahead != 0 ? orders_[order.ahead].behind : level.first) = order.behind;
    (order.behind != 0 ? orders_[order.behind].ahead : level.last) = order.ahead;
    if (level.first != 0) return;
    book.vacate(tick);
    if ((order.tick & 1) == kBuy) {
      if (static_cast<std::int32_t>(tick) == book.bid) book.bid = book.below(tick);
    } else {
      if (static_cast<std::int32_t>(tick) == book.ask) book.ask = book.above(tick);
    }
  }

  std::vector<Book> books_;
  Order* orders_ = nullptr;  // by id; ends with the process
  std::vector<Level> levels_;
  std::vector<std::uint64_t> bits_;
};

std::vector<Record> read_records(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (file == nullptr || std::fseek(file, 0, SEEK_END) != 0) return {};
  std::vector<Record> records(static_cast<std::size_t>(std::ftell(file)) / sizeof(Record));
  std::rewind(file);
  if (std::fread(records.data(), sizeof(Record), records.size(), file) != records.size()) return {};
  std::fclose(file);
  return records;
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "usage: %s FILE PRELOAD\n", words[0]);
    return 2;
  }
  const std::vector<Record> records = read_records(words[1]);
  const std::size_t preload = std::strtoull(words[2], nullptr, 10);
  if (records.size() <= preload) {
    std::fprintf(stderr, "%s: cannot read more than %zu records\n", words[1], preload);
    return 2;
  }
  const std::span<const Record> all(records);
  Ladder ladder(all);
  ladder.play(all.first(preload));
  const auto begin = std::chrono::steady_clock::now();
  ladder.play(all.subspan(preload));
  const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begin;
  std::printf("{\"ns_op\": %.3f, \"fills\": %llu, \"volume\": %llu, \"hash\": \"%016llx\"}\n",
              spent.count() / static_cast<double>(records.size() - preload),
              static_cast<unsigned long long>(ladder.totals.fills),
              static_cast<unsigned long long>(ladder.totals.volume),
              static_cast<unsigned long long>(ladder.totals.hash));
}
