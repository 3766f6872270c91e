"""Visual-token compressors for the draft: fewer slots per picture, the same text. Depends only on torch."""
