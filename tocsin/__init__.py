"""tocsin: crash protection, error tracking and alerting for services."""
__version__ = "0.1.0"
