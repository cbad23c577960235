//! Tidegate: a layer-7 reverse proxy and load balancer for LLM inference.
pub mod base;

pub mod api;
pub mod observe;
pub mod pods;
pub mod prefix;

pub mod flow;
pub mod scheduling;

pub mod admin;
pub mod discovery;
pub mod export;
pub mod proxy;
pub mod runtime;
pub mod telemetry;

pub mod config;
pub mod sim;

pub mod app;
pub mod demo;
