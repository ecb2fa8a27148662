"""Kedro datasets for the catalog: models, controllers, checkpoint stores, exported files, reports, and users' data.

Start with `model.py` and `recipe.py`, which save a module without pickle; most others extend `local.py`. Previews and
messages can be changed safely; class names, their arguments and the files that they write cannot, because users'
catalogs and saved runs depend on them.
"""
