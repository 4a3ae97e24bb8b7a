//! Client programs beside psql: small scripts for the drivers that agents really use.
