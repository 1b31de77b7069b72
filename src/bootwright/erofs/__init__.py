"""EROFS images as composefs writes them: dump text, tree, writer, reader. Pure: bytes in, bytes out."""
