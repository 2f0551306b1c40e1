"""What a model attends to and retrieves, as pictures and as pages.

attention.py         the operator's maps of a pair, with the words' texts and the regions' places
heat.py              attention over regions as an image
figures.py           PNG figures of a pair and of trainings
figure_page.py, retrieval_page.py, rendering.py      HTML pages, each one file that needs nothing else
"""
