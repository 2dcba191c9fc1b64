"""fs3 as fsspec sees it: the filesystem class (`spec`) and its file objects (`files`)."""
