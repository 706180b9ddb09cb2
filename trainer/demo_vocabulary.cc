// The vocabulary of the recall demo, in the World format. No token crosses from one turn into the
// next: "\n\n" is a token of its own, and what follows it in a turn starts with "User:" or stands
// inside "\n\nAssistant:".

#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "trainer/demo_data.h"
#include "trainer/demo_text.h"

namespace skein::trainer {
namespace {

// " word" of every word in a sentence, as it stands and in lower case; marks stay bytes.
void AddWords(const std::string& sentence, std::set<std::string>* words) {
  const std::string text =
      absl::StrReplaceAll(sentence, {{"{}", ""}, {".", ""}, {",", ""}, {"?", ""}, {"!", ""}});
  for (absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    const std::string spaced = absl::StrCat(" ", word.substr(0, word.find('\'')));
    words->insert(spaced);
    words->insert(absl::AsciiStrToLower(spaced));
    if (word.find('\'') != absl::string_view::npos)
      words->insert(std::string(word.substr(word.find('\''))));
  }
}

void AddSentences(std::set<std::string>* words) {
  for (const FactKind& kind : FactKinds()) {
    for (const std::string& text : kind.statements) AddWords(text, words);
    for (const std::string& text : kind.questions) AddWords(text, words);
    AddWords(kind.answer, words);
  }
  for (const std::string& text : OtherQuestions()) AddWords(text, words);
  for (const SmallTalk& talk : SmallTalks()) {
    AddWords(talk.user, words);
    AddWords(talk.answer, words);
  }
  for (const std::string& text : Colours()) AddWords(text, words);
  for (const std::string& text : Foods()) AddWords(text, words);
  AddWords(kNoted, words);
  AddWords(kUnknown, words);
  AddWords("and", words);
}

void AddSyllables(std::set<std::string>* words) {
  for (char consonant : std::string("bdfghklmnprstv")) {
    for (char vowel : std::string("aeiou")) {
      const std::string syllable{consonant, vowel};
      words->insert(syllable);
      words->insert(absl::StrCat(" ", syllable));
      words->insert({' ', absl::ascii_toupper(static_cast<unsigned char>(consonant)), vowel});
    }
  }
  for (char letter = 'a'; letter <= 'z'; ++letter) {
    words->insert({' ', letter});
    words->insert({' ', absl::ascii_toupper(static_cast<unsigned char>(letter))});
  }
  for (char digit = '0'; digit <= '9'; ++digit) words->insert({' ', digit});
}

std::string Literal(const std::string& bytes) {
  std::string out = "b'";
  for (unsigned char c : bytes) {
    if (c < 0x20 || c >= 0x7f || c == '\'' || c == '\\') {
      out += absl::StrFormat("\\x%02x", c);
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + "'";
}

}  // namespace

std::string DemoVocabulary() {
  std::set<std::string> words = {"User:", "\n\nAssistant:", "\n\n"};
  AddSentences(&words);
  AddSyllables(&words);
  std::string text;
  int id = 1;
  const auto add = [&](const std::string& bytes) {
    absl::StrAppend(&text, id++, " ", Literal(bytes), " ", bytes.size(), "\n");
  };
  for (int byte = 0; byte < 256; ++byte) add(std::string(1, static_cast<char>(byte)));
  for (const std::string& word : words) add(word);
  return text;
}

std::vector<std::string> DemoExamples() {
  return {"My name is Talor.",
          "I live in Bremen and my favourite colour is green.",
          "What is my name?",
          "Where do I live?",
          "My pet is called Momo.",
          "What is my pet called?",
          "My number is 4821.",
          "What is my number?",
          "What is my favourite colour?",
          "What is my favourite food?"};
}

std::string DemoDescription() {
  return "A tiny RWKV-7, trained in two minutes on dialogues that it was given by a generator. It "
         "remembers what you "
         "tell it about yourself (name, town, pet, number, favourite colour and food, friend) and "
         "answers when asked; "
         "all of it lives in the recurrent state.";
}

}  // namespace skein::trainer
