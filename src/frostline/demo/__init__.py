"""The steps of `frostline demo`: train, audit and draw a real model on text that every Python has.

story.py           the steps, and what is printed
corpus.py          the documentation of the installed Python as text and as labelled sentences
train_vectors.py   word2vec
regimes.py         the tagger, trained in three regimes
moved_words.py     which words moved, how far, and in which direction
pictures.py        the curves and the map, by matplotlib
"""
