#!/usr/bin/env python3
"""`make train` after the build: what run folder and model a text gets. In place of skein-train stands a script that
prints its arguments.

Needs Python 3 and bash.
"""

import os
import shutil
import subprocess
import tempfile
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Train(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = os.path.join(temporary.name, "skein.v1")
        os.makedirs(os.path.join(self.folder, "deploy"))
        shutil.copy(os.path.join(ROOT, "deploy", "train.sh"), os.path.join(self.folder, "deploy"))
        self.write("build/bin/skein-train", '#!/bin/bash\nprintf "%s\\n" "$@"\n')
        self.write("recipe.yaml", "")

    def write(self, path, text=""):
        path = os.path.join(self.folder, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o755)
        return path

    def train(self, text):
        """key -> value of the settings that skein-train is called with."""
        done = subprocess.run([os.path.join(self.folder, "deploy", "train.sh"), text, "recipe.yaml"], cwd=self.folder,
                              capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        words = done.stdout.splitlines()
        self.assertEqual(words[:2], ["--config", os.path.join(self.folder, "recipe.yaml")])
        return dict(word.split("=", 1) for word in words[2:] if word != "--set")

    def names(self, text):
        self.write(text)
        settings = self.train(text)
        self.assertEqual(settings["data.train"], os.path.join(self.folder, text))
        run, model = settings["run.folder"], settings["run.output"]
        self.assertEqual(model, f"models/{os.path.basename(run)}.safetensors")
        self.assertEqual(os.path.dirname(run), "runs")
        return os.path.basename(run)

    def test_the_name_of_the_file_without_its_ending(self):
        for text, name in (("book.txt", "book"), ("data.v2/book", "book"), ("data.v2/my book.txt", "my book"),
                           ("book.v2.txt", "book.v2"), (".txt", ".txt"), ("chats.jsonl", "chats")):
            with self.subTest(text=text):
                self.assertEqual(self.names(text), name)

    def test_a_folder_of_texts(self):
        self.write("my.books/one.txt")
        self.assertEqual(self.train("my.books/")["run.folder"], "runs/my.books")

    def test_nothing_is_overwritten(self):
        self.write("runs/book/config.yaml")
        self.assertEqual(self.names("book.txt"), "book-2")
        self.write("models/book-2.safetensors")
        self.assertEqual(self.names("book.txt"), "book-3")

    def test_the_demo_stays_the_demo(self):
        """`make serve` would take a model of that name for its own."""
        self.assertEqual(self.names("demo.txt"), "demo-2")


if __name__ == "__main__":
    unittest.main()
