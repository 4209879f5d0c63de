"""What people upload: text out of their files, conversations out of their exports.

Everything here is hostile. What a library or a large parser reads is read in a process of its own,
with limits on its time, its memory and on what it may say.
"""
