//! How the API server is reached.
use std::sync::Once;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::settings::Settings;

/// A client made from the service account or the kubeconfig, as the files say now.
pub(super) async fn connect(settings: &Settings) -> Result<Client, String> {
    crypto();
    let config = match &settings.kubeconfig {
        None => Config::incluster().map_err(|error| {
            format!("not in a cluster, or without a service account ({error}); set pods.kubernetes.kubeconfig")
        })?,
        Some(path) => {
            let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let file = Kubeconfig::read_from(path).map_err(|error| told(&error))?;
            let options = KubeConfigOptions { context: settings.context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| told(&error))?
        }
    };
    Client::try_from(config).map_err(|error| error.to_string())
}

/// rustls asks for a process-wide choice where a crate makes none.
fn crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
}
