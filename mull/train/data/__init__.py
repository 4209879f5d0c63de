"""The data of training: from tasks, files and kept answers to packed examples, step by step."""
