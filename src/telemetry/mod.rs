//! Asks the pods how they are: scrapes `/metrics`, reads `/v1/models` and `/version`, and publishes what they say.
mod metrics;
