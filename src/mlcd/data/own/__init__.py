"""What people have already: embeddings, centers and labels that other programs wrote.

:mod:`.arrays` opens the files, :mod:`.rows` puts several after one another and shares them among
chunks, :mod:`.join` finds the row of each image of a chunk.
"""
