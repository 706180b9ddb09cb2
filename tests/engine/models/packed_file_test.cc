#include "engine/models/packed_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/models/model.h"
#include "tests/engine/random_model.h"
#include "tests/temp_folder.h"

namespace skein::engine {
namespace {

namespace fs = std::filesystem;

constexpr RandomShape kShape{2, 64, 16, 4000, 256, 24, 16, 8, 40, 1};

std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (const char* tier : {"plain", "avx2", "avx512", "avx512bf16", "amx"}) {
    std::string error;
    if (kernels::NewCpuDevice({1, tier}, &error) != nullptr) tiers.push_back(tier);
  }
  return tiers;
}

void WriteModel(const std::string& path, uint64_t seed) {
  RandomShape shape = kShape;
  shape.seed = seed;
  ASSERT_TRUE(RandomModel(shape).Write(path).ok());
}

// A model of a checkpoint, loaded with a packed file or ("") without, and what it computes.
struct Loaded {
  Loaded(const std::string& checkpoint_path, const std::string& packed_path,
         const std::string& tier = "", DType weights = DType::kBF16) {
    std::string error;
    device = kernels::NewCpuDevice({2, tier}, &error);
    EXPECT_NE(device, nullptr) << error;
    auto opened = Checkpoint::Open(checkpoint_path);
    EXPECT_TRUE(opened.ok()) << opened.status();
    checkpoint = *std::move(opened);
    packed = std::make_unique<PackedFile>(*checkpoint, packed_path);
    ModelOptions options;
    options.weights = weights;
    options.max_tokens = options.max_rows = options.max_logits = 8;
    if (!packed_path.empty()) options.packed = packed.get();
    auto loaded = Model::Load(*checkpoint, *device, options);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model = *std::move(loaded);
    Run();
  }

  void Run() {
    const auto stream = device->NewStream();
    states.resize(model->config().state_floats());
    const std::vector<int32_t> tokens = {1, 77, 3999, 0, 256}, offsets = {0, 5}, slots = {0};
    const std::vector<int32_t> wanted = {0, 1, 2, 3, 4};
    const float* out = model->Step({tokens, offsets, slots, wanted}, states.data(), *stream);
    logits.assign(out, out + wanted.size() * model->config().V);
  }

  // Bit for bit.
  bool Same(const Loaded& other) const {
    const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
    };
    return same(logits, other.logits) && same(states, other.states);
  }
  bool read() const { return packed->read().has_value() && packed->read()->ok(); }
  bool written() const { return packed->written().has_value() && packed->written()->ok(); }
  absl::StatusCode refused() const { return packed->read()->code(); }

  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<PackedFile> packed;
  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<Model> model;
  std::vector<float> logits, states;
};

class PackedFileTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string test = testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = TempFolder() + "/" + test;
    fs::create_directories(folder_);
    model_ = folder_ + "/m.safetensors";
    packed_ = folder_ + "/m.packed";
    WriteModel(model_, 1);
  }
  // Names in the folder.
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.push_back(entry.path().filename());
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  void Flip(uint64_t offset) const {
    std::fstream file(packed_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(file.get() ^ 0x10);
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(byte);
  }
  // A file that cannot be used changes nothing but the time: the weights are right, the file is
  // made anew and the next load uses it.
  void ExpectPackedAnew(absl::StatusCode why) {
    const Loaded plain(model_, "");
    const Loaded anew(model_, packed_);
    EXPECT_EQ(anew.refused(), why) << *anew.packed->read();
    EXPECT_FALSE(anew.packed->read()->message().empty());
    EXPECT_TRUE(anew.written());
    EXPECT_TRUE(anew.Same(plain));
    const Loaded after(model_, packed_);
    EXPECT_TRUE(after.read());
    EXPECT_TRUE(after.Same(plain));
  }

  std::string folder_, model_, packed_;
};

TEST_F(PackedFileTest, GivesTheSameBitsOnEveryTierWithEveryType) {
  for (const std::string& tier : Tiers()) {
    for (const DType weights : {DType::kF32, DType::kBF16, DType::kI8}) {
      const std::string path = PackedFile::PathFor(model_, tier, weights);
      const Loaded plain(model_, "", tier, weights);
      const Loaded first(model_, path, tier, weights);
      EXPECT_EQ(first.refused(), absl::StatusCode::kNotFound);
      EXPECT_TRUE(first.written()) << *first.packed->written();
      const Loaded second(model_, path, tier, weights);
      EXPECT_TRUE(second.read()) << path << ": " << *second.packed->read();
      EXPECT_TRUE(first.Same(plain)) << path;
      EXPECT_TRUE(second.Same(plain)) << path;
      EXPECT_EQ(second.packed->Fingerprint(1), plain.checkpoint->Fingerprint());
    }
  }
  EXPECT_EQ(Files().size(), 1 + 3 * Tiers().size());  // no temporary is left
}

TEST_F(PackedFileTest, DamageIsSeenWhereverItIs) {
  { const Loaded first(model_, packed_); }
  const uint64_t size = fs::file_size(packed_);
  // Magic, layout, fingerprint, times, sizes, hashes, the padding's neighbour, the image.
  for (const uint64_t at : {uint64_t{0}, uint64_t{9}, uint64_t{17}, uint64_t{40}, uint64_t{57},
                            uint64_t{64}, uint64_t{4096}, size / 2, size - 1}) {
    SCOPED_TRACE(at);
    Flip(at);
    ExpectPackedAnew(absl::StatusCode::kDataLoss);
  }
}

TEST_F(PackedFileTest, ACutOrLongerFileIsNotUsed) {
  { const Loaded first(model_, packed_); }
  const uint64_t size = fs::file_size(packed_);
  for (const uint64_t cut : {uint64_t{0}, uint64_t{7}, uint64_t{4096}, size - 1, size + 1}) {
    SCOPED_TRACE(cut);
    fs::resize_file(packed_, cut);
    ExpectPackedAnew(absl::StatusCode::kDataLoss);
  }
}

TEST_F(PackedFileTest, AFileOfAnotherTypeIsNotUsed) {
  std::string fp32 = packed_ + ".fp32";
  { const Loaded other(model_, fp32, "plain", DType::kF32); }
  fs::rename(fp32, packed_);
  EXPECT_EQ(Loaded(model_, packed_, "plain", DType::kBF16).refused(), absl::StatusCode::kDataLoss);
}

TEST_F(PackedFileTest, AnotherTiersFileOfTheSameSizeIsNotUsed) {
  if (Tiers().size() < 2) GTEST_SKIP() << "one tier";
  { const Loaded other(model_, packed_, "plain", DType::kF32); }
  const Loaded loaded(model_, packed_, "avx2", DType::kF32);
  EXPECT_FALSE(loaded.read());
  EXPECT_TRUE(loaded.Same(Loaded(model_, "", "avx2", DType::kF32)));
}

TEST_F(PackedFileTest, ANewCheckpointIsPackedAnew) {
  { const Loaded first(model_, packed_); }
  WriteModel(model_, 2);
  ExpectPackedAnew(absl::StatusCode::kFailedPrecondition);
}

// Same inode, same size, same time of modification.
TEST_F(PackedFileTest, ACheckpointChangedInPlaceIsPackedAnew) {
  sleep(3);  // so that the times of the checkpoint are trusted
  { const Loaded first(model_, packed_); }
  const Loaded known(model_, packed_);
  EXPECT_TRUE(known.read());
  EXPECT_FALSE(known.packed->written().has_value());
  struct stat before {};
  ASSERT_EQ(stat(model_.c_str(), &before), 0);
  {
    std::fstream file(model_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-400, std::ios::end);
    file.write("\x01\x02\x03\x3d", 4);
  }
  const timespec times[] = {before.st_atim, before.st_mtim};
  ASSERT_EQ(utimensat(AT_FDCWD, model_.c_str(), times, 0), 0);
  ExpectPackedAnew(absl::StatusCode::kFailedPrecondition);
}

TEST_F(PackedFileTest, ACopyOfTheCheckpointIsRecognisedByItsContents) {
  { const Loaded first(model_, packed_); }
  const std::string copy = model_ + ".copy";
  fs::copy_file(model_, copy);
  fs::remove(model_);
  fs::rename(copy, model_);
  const Loaded loaded(model_, packed_);
  EXPECT_TRUE(loaded.read());
  EXPECT_TRUE(loaded.written());  // now it knows this one's times
}

TEST_F(PackedFileTest, WithoutPlaceTheModelIsLoadedAllTheSame) {
  const Loaded plain(model_, "");
  const Loaded nowhere(model_, folder_ + "/no/such/folder/m.packed");
  EXPECT_FALSE(nowhere.written());
  EXPECT_TRUE(nowhere.Same(plain));

  signal(SIGXFSZ, SIG_IGN);
  rlimit unlimited{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &unlimited), 0);
  const rlimit limit{300000, unlimited.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Loaded full(model_, packed_);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &unlimited), 0);
  EXPECT_EQ(full.packed->written()->code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(full.Same(plain));
  EXPECT_EQ(Files(), std::vector<std::string>{"m.safetensors"});  // nothing half written
}

TEST_F(PackedFileTest, SeveralAtOnce) {
  const Loaded plain(model_, "");
  for (int round = 0; round < 3; ++round) {
    std::vector<std::thread> daemons;
    for (int i = 0; i < 4; ++i) {
      daemons.emplace_back([&] {
        const Loaded loaded(model_, packed_);
        EXPECT_TRUE(loaded.Same(plain));
      });
    }
    for (std::thread& daemon : daemons) daemon.join();
    EXPECT_TRUE(Loaded(model_, packed_).read());
    EXPECT_EQ(Files(), (std::vector<std::string>{"m.packed", "m.safetensors"}));
    Flip(fs::file_size(packed_) / 2);
  }
}

TEST_F(PackedFileTest, ACancelledLoadLeavesNothing) {
  std::string error;
  const auto device = kernels::NewCpuDevice({2, ""}, &error);
  const auto checkpoint = Checkpoint::Open(model_);
  ASSERT_TRUE(checkpoint.ok());
  for (const auto stage : {LoadProgress::Stage::kPacking, LoadProgress::Stage::kWriting}) {
    PackedFile packed(**checkpoint, packed_);
    bool wanted = true;
    ModelOptions options;
    options.packed = &packed;
    options.progress = [&](const LoadProgress& progress) {
      if (progress.stage == stage && progress.done > 0) wanted = false;
    };
    options.wanted = [&] { return wanted; };
    EXPECT_TRUE(absl::IsCancelled(Model::Load(**checkpoint, *device, options).status()));
    EXPECT_EQ(Files(), std::vector<std::string>{"m.safetensors"});
  }
}

TEST(LoadProgress, GoesOnToTheEnd) {
  const std::string path = TempFolder() + "/progress.safetensors";
  WriteModel(path, 1);
  std::string error;
  const auto device = kernels::NewCpuDevice({2, ""}, &error);
  const auto checkpoint = Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok());
  int64_t last = 0, total = 0;
  ModelOptions options;
  options.progress = [&](const LoadProgress& progress) {
    EXPECT_GE(progress.done, last);
    last = progress.done;
    total = progress.total;
  };
  const auto model = Model::Load(**checkpoint, *device, options);
  ASSERT_TRUE(model.ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, (*model)->weight_bytes());
}

TEST(PackedHeader, RoundTripAndEveryDamagedByte) {
  PackedHeader header;
  header.layout = 11;
  header.fingerprint = 12;
  header.checkpoint = {1, 2, 3, 4};
  header.image_bytes = 3 * kPackedChunk + 5;
  header.hashes = {7, 8, 9, 10};
  std::string data = EncodePackedHeader(header);
  ASSERT_EQ(data.size(), PackedHeaderBytes(header.image_bytes));
  const auto parsed = ParsePackedHeader(data, header.image_bytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->layout, header.layout);
  EXPECT_EQ(parsed->fingerprint, header.fingerprint);
  EXPECT_EQ(parsed->checkpoint, header.checkpoint);
  EXPECT_EQ(parsed->hashes, header.hashes);
  for (size_t i = 0; i < (8 + 4 + 1) * 8; ++i) {
    data[i] ^= 1;
    EXPECT_FALSE(ParsePackedHeader(data, header.image_bytes).ok()) << i;
    data[i] ^= 1;
  }
  EXPECT_FALSE(ParsePackedHeader(data.substr(1), header.image_bytes).ok());
  EXPECT_FALSE(ParsePackedHeader(data, header.image_bytes - 1).ok());
}

}  // namespace
}  // namespace skein::engine
