"""Everything that knows somebody else's software by name, one file each.

The core sees a model only through its anatomy; the files here make anatomies and load models.
"""
