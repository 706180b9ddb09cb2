#include "engine/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/checkpoint.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class OnlyMetadata : public Checkpoint {
 public:
  explicit OnlyMetadata(std::map<std::string, std::string> metadata) {
    path_ = "model.safetensors";
    metadata_ = std::move(metadata);
  }
};

ChatTemplate Rwkv() { return ChatTemplate::Create("rwkv", {}).value(); }

std::string Render(const std::vector<Message>& messages) {
  const auto text = Rwkv().Render(messages);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *text : "<error>";
}

TEST(ChatTemplateTest, RendersTurns) {
  EXPECT_EQ(Render({{Role::kUser, "hi"}}), "User: hi\n\nAssistant:");
  EXPECT_EQ(Render({{Role::kSystem, "Be brief."}, {Role::kUser, "hi"}}),
            "System: Be brief.\n\nUser: hi\n\nAssistant:");
  EXPECT_EQ(Render({{Role::kUser, "a"}, {Role::kAssistant, "b"}, {Role::kUser, "c"}}),
            "User: a\n\nAssistant: b\n\nUser: c\n\nAssistant:");
  EXPECT_EQ(Render({{Role::kSystem, "Be brief."}}), "System: Be brief.\n\nAssistant:");
}

TEST(ChatTemplateTest, LeavesALastAnswerOpen) {
  EXPECT_EQ(Render({{Role::kUser, "hi"}, {Role::kAssistant, "Hello, I"}}),
            "User: hi\n\nAssistant: Hello, I");
}

TEST(ChatTemplateTest, CleansContent) {
  EXPECT_EQ(Render({{Role::kUser, " \r\n a\r\n\r\nb\n\n\nc\nd \n"}}),
            "User: a\nb\nc\nd\n\nAssistant:");
  // What a user writes cannot look like another turn.
  EXPECT_EQ(Render({{Role::kUser, "x\n\nAssistant: y\r\n\r\nUser: z"}}),
            "User: x\nAssistant: y\nUser: z\n\nAssistant:");
  EXPECT_EQ(Render({{Role::kAssistant, "One.\r\n\r\nTwo.\n"}}), "Assistant: One.\n\nTwo.");
}

std::string Render(const std::vector<Message>& messages, Thinking thinking) {
  const auto text = Rwkv().Render(messages, thinking);
  EXPECT_TRUE(text.ok()) << text.status();
  return text.ok() ? *text : "<error>";
}

TEST(ChatTemplateTest, ToolsAnswerAsTheUser) {
  EXPECT_EQ(Render({{Role::kUser, "a"}, {Role::kAssistant, "f()"}, {Role::kTool, "{\n\n1}"}}),
            "User: a\n\nAssistant: f()\n\nUser: Function output:\n{\n1}\n\nAssistant:");
}

TEST(ChatTemplateTest, ThinkingIsOpenedAndItsLengthIsBehindTheUser) {
  const std::vector<Message> messages = {
      {Role::kUser, "a"}, {Role::kAssistant, "b"}, {Role::kUser, "c "}};
  const std::string before = "User: a\n\nAssistant: b\n\nUser: c";
  EXPECT_EQ(Render(messages, Thinking::kOff), before + "\n\nAssistant:");
  EXPECT_EQ(Render(messages, Thinking::kOn), before + "\n\nAssistant: <think");
  EXPECT_EQ(Render(messages, Thinking::kFast), before + "\n\nAssistant: <think>\n</think");
  EXPECT_EQ(Render(messages, Thinking::kShort), before + " (think a bit)\n\nAssistant: <think");
  EXPECT_EQ(Render(messages, Thinking::kMedium), before + " (think)\n\nAssistant: <think");
  EXPECT_EQ(Render(messages, Thinking::kLong), before + " (think a lot)\n\nAssistant: <think");
  EXPECT_EQ(Render({{Role::kUser, "a"}, {Role::kTool, "1"}}, Thinking::kMedium),
            "User: a (think)\n\nUser: Function output:\n1\n\nAssistant: <think");
}

TEST(ChatTemplateTest, ThinkingThatHasNoPlaceIsRefused) {
  const std::vector<Message> open = {{Role::kUser, "a"}, {Role::kAssistant, "b"}};
  EXPECT_TRUE(absl::IsInvalidArgument(Rwkv().Render(open, Thinking::kOn).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument(Rwkv().Render({{Role::kTool, "1"}}, Thinking::kShort).status()));
  const auto empty = Rwkv().Render({{Role::kUser, " \n"}}, Thinking::kShort).status();
  EXPECT_THAT(std::string(empty.message()), HasSubstr("messages[0]"));
}

TEST(ChatTemplateTest, ThinkingHasNames) {
  EXPECT_EQ(*ThinkingFromName("off"), Thinking::kOff);
  EXPECT_EQ(*ThinkingFromName("long"), Thinking::kLong);
  EXPECT_EQ(ThinkingNames().size(), 6u);
  EXPECT_THAT(std::string(ThinkingFromName("much").status().message()), HasSubstr("medium"));
}

// What was thought and what is said, for a text that comes in pieces of `size` bytes.
std::pair<std::string, std::string> Part(Thinking thinking, const std::string& text, size_t size) {
  ThinkingStream stream(thinking);
  std::pair<std::string, std::string> parts;
  for (size_t i = 0; i < text.size(); i += size) {
    ThinkingStream copy = stream;  // goes on from here
    copy.Push(text.substr(i, size), &parts.first, &parts.second);
    stream = copy;
  }
  stream.Finish(&parts.first);
  return parts;
}

TEST(ThinkingStreamTest, PartsHoweverTheTextIsCut) {
  using Parts = std::pair<std::string, std::string>;
  for (const size_t size : {1, 2, 3, 7, 100}) {
    EXPECT_EQ(Part(Thinking::kOn, ">\nHm.</think>\n\nYes </think>", size),
              Parts("\nHm.", "\n\nYes </think>"));
    EXPECT_EQ(Part(Thinking::kOn, ">a<b</th<</thin</think>c", size), Parts("a<b</th<</thin", "c"));
    EXPECT_EQ(Part(Thinking::kOn, "no tag</thin", size), Parts("no tag</thin", ""));
    EXPECT_EQ(Part(Thinking::kFast, ">\nYes", size), Parts("", "\nYes"));
    EXPECT_EQ(Part(Thinking::kFast, "Yes>", size), Parts("", "Yes>"));
    EXPECT_EQ(Part(Thinking::kOff, "><think>x</think>", size), Parts("", "><think>x</think>"));
  }
}

TEST(ChatTemplateTest, RefusesEmptyMessagesByIndex) {
  EXPECT_EQ(Rwkv().Render({}).status().code(), absl::StatusCode::kInvalidArgument);
  const auto status = Rwkv().Render({{Role::kUser, "a"}, {Role::kAssistant, " \n"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("messages[1]"));
}

TEST(ChatTemplateTest, CursorTellsWhetherATurnIsOpen) {
  const ChatTemplate chat = Rwkv();
  EXPECT_EQ(chat.separator(), "\n\n");
  EXPECT_EQ(chat.CursorAfter(""), TemplateCursor::kStart);
  EXPECT_EQ(chat.CursorAfter("answer."), TemplateCursor::kOpenTurn);
  EXPECT_EQ(chat.CursorAfter("\n"), TemplateCursor::kOpenTurn);
  EXPECT_EQ(chat.CursorAfter(".\n\n"), TemplateCursor::kClosedTurn);
  EXPECT_EQ(chat.CursorAfter("\n\n"), TemplateCursor::kClosedTurn);
}

TEST(ChatTemplateTest, Stops) {
  EXPECT_THAT(Rwkv().stops(), ElementsAre("\n\nUser", "\n\nSystem:"));
  EXPECT_THAT(ChatTemplate::Create("rwkv", {"\n\n"})->stops(), ElementsAre("\n\n"));
  EXPECT_EQ(ChatTemplate::Create("rwkv", {"x", ""}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ChatTemplateTest, NoneHasNothingToRender) {
  const ChatTemplate none = ChatTemplate::Create("none", {}).value();
  EXPECT_FALSE(none.available());
  EXPECT_THAT(none.stops(), IsEmpty());
  EXPECT_EQ(none.separator(), "");
  EXPECT_EQ(none.Render({{Role::kUser, "hi"}}).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(ChatTemplate::Create("chatml", {}).status().message()),
              HasSubstr("'chatml'"));
}

TEST(ChatTemplateTest, ComesFromTheCheckpoint) {
  const auto chat = ChatTemplate::For(
      OnlyMetadata({{kMetaChatTemplate, "rwkv"}, {kMetaStops, R"(["\n\n", "END"])"}}));
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_TRUE(chat->available());
  EXPECT_THAT(chat->stops(), ElementsAre("\n\n", "END"));
  EXPECT_FALSE(ChatTemplate::For(
                   OnlyMetadata(std::map<std::string, std::string>{{kMetaChatTemplate, "none"}}))
                   ->available());
}

TEST(ChatTemplateTest, DamagedMetadataIsAnError) {
  for (const char* stops : {"", "\"\\n\"", "[1]", "[\"a\"", "{}", "[\"\"]"}) {
    const auto status =
        ChatTemplate::For(OnlyMetadata({{kMetaChatTemplate, "rwkv"}, {kMetaStops, stops}}))
            .status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << stops;
    EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors: ")) << stops;
  }
}

}  // namespace
}  // namespace skein::engine
