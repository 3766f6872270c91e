"""Chats and pictures to token ids and pixel tensors, and token ids back to text.

Shared by the HTTP server and the offline API. Knows no HTTP, no engine and no model weights.
"""
