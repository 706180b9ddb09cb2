#include "trainer/demo_text.h"

namespace skein::trainer {

const std::vector<FactKind>& FactKinds() {
  static const auto& kinds = *new std::vector<FactKind>{
      {ValueKind::kName,
       {"My name is {}.", "I am {}.", "I'm {}.", "Call me {}.", "Hello, my name is {}.",
        "Hi, I am {}."},
       {"What is my name?", "What's my name?", "Who am I?", "Do you know my name?",
        "Tell me my name."},
       "Your name is {}."},
      {ValueKind::kName,
       {"I live in {}.", "I am from {}.", "I'm from {}.", "My town is {}.", "My city is {}."},
       {"Where do I live?", "Where am I from?", "What is my town?", "What is my city?",
        "Which town do I live in?"},
       "You live in {}."},
      {ValueKind::kName,
       {"My pet is called {}.", "I have a pet called {}.", "My dog is called {}.",
        "My cat is called {}.", "My pet's name is {}."},
       {"What is my pet called?", "What is my pet's name?", "What is the name of my pet?",
        "Who is my pet?"},
       "Your pet is called {}."},
      {ValueKind::kNumber,
       {"My number is {}.", "My lucky number is {}.", "My favourite number is {}.",
        "Remember the number {}."},
       {"What is my number?", "What's my number?", "Which number did I say?",
        "What is my lucky number?"},
       "Your number is {}."},
      {ValueKind::kColour,
       {"My favourite colour is {}.", "My favorite color is {}.", "My colour is {}.",
        "I like the colour {}."},
       {"What is my favourite colour?", "What is my favorite color?", "Which colour do I like?",
        "What is my colour?"},
       "Your favourite colour is {}."},
      {ValueKind::kFood,
       {"My favourite food is {}.", "I like to eat {}.", "I love to eat {}.",
        "My favorite food is {}."},
       {"What is my favourite food?", "What do I like to eat?", "Which food do I like?",
        "What do I love to eat?"},
       "You like to eat {}."},
      {ValueKind::kName,
       {"My friend is called {}.", "My best friend is {}.", "My friend's name is {}.",
        "I have a friend called {}."},
       {"What is my friend called?", "Who is my friend?", "What is my friend's name?",
        "Who is my best friend?"},
       "Your friend is called {}."},
  };
  return kinds;
}

const std::vector<std::string>& Colours() {
  static const auto& list =
      *new std::vector<std::string>{"red",    "blue", "green", "yellow", "black", "white",
                                    "orange", "pink", "brown", "purple", "grey",  "gold"};
  return list;
}

const std::vector<std::string>& Foods() {
  static const auto& list =
      *new std::vector<std::string>{"bread", "rice", "soup", "cheese", "apples", "pizza",
                                    "fish",  "cake", "eggs", "pasta",  "salad",  "curry"};
  return list;
}

const std::vector<std::string>& OtherQuestions() {
  static const auto& list = *new std::vector<std::string>{
      "How old am I?",      "What is my job?", "What time is it?", "What is the weather like?",
      "What is your name?", "Where is my car?"};
  return list;
}

const std::vector<SmallTalk>& SmallTalks() {
  static const auto& list =
      *new std::vector<SmallTalk>{{"Hello.", "Hello. Tell me about yourself."},
                                  {"Hi.", "Hello. Tell me about yourself."},
                                  {"Hello!", "Hello. Tell me about yourself."},
                                  {"How are you?", "I am fine."},
                                  {"Thank you.", "You are welcome."},
                                  {"Thanks.", "You are welcome."},
                                  {"Ok.", "Noted."}};
  return list;
}

}  // namespace skein::trainer
