"""Visual-token compressors for the draft: fewer slots for a picture, the same text. Imports torch alone."""
