"""Where the wheel finds its packages: the folders at the top of the repository, mapped below `persephonee`.

Everything else about the project stands in pyproject.toml. The rooms are found here, not listed there, so that a new
one cannot be forgotten.
"""

from setuptools import find_packages, setup

FOLDERS = ("multi_exit", "data_partitions", "clients", "server", "fl_app")

packages = ["persephonee", "persephonee.commands"]
packages += [f"persephonee.commands.{room}" for room in find_packages("persephonee/commands")]
for folder in FOLDERS:
    packages += [f"persephonee.{folder}", *(f"persephonee.{folder}.{room}" for room in find_packages(folder))]

setup(
    packages=packages,
    package_dir={f"persephonee.{folder}": folder for folder in FOLDERS},
    # a file, since the script that would be made of an entry point imports a user's own persephonee.py
    scripts=["persephonee/console/persephonee"],
)
