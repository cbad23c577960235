//! The connectors, one file each.
mod mooncake;
mod nixl;
mod nixl_push;
mod offloading;
mod shared_storage;

use super::connector::Connector;
use super::settings::ConnectorName;

/// The connector of this name.
pub fn connector(name: ConnectorName) -> &'static dyn Connector {
    match name {
        ConnectorName::Nixl => &nixl::Nixl,
        ConnectorName::NixlPush => &nixl_push::NixlPush,
        ConnectorName::Mooncake => &mooncake::Mooncake,
        ConnectorName::Offloading => &offloading::Offloading,
        ConnectorName::SharedStorage => &shared_storage::SharedStorage,
    }
}
