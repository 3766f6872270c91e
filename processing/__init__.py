"""Chats and pictures to token ids and pixel tensors, and token ids back to text.

Shared by the HTTP server and the offline API. Independent of HTTP, the engine and model weights.
"""
