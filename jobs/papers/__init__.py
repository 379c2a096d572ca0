"""The papers' own tables as recipes, one file a paper, named by its stem; `rows()` of each lists them line by line."""
