"""Small tools that know nothing of attribution: atomic files, memory maps, progress, sandboxed regular expressions."""
