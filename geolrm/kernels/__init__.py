"""Triton twins of the slow readable definitions in `geolrm.model`: without this folder, or without Triton, everything runs."""
