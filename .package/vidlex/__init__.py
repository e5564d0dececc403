"""Self-hosted video tagging with an open, growing vocabulary.

The packages are ``vidlex.service``, ``vidlex.model`` and ``vidlex.migrations``: links to the folders at the root of
the repository. Importing ``vidlex`` imports none of them.
"""
