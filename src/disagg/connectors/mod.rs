//! The connectors, one file each.
mod nixl;

use super::connector::Connector;
use super::settings::ConnectorName;

/// The connector of this name.
pub fn connector(name: ConnectorName) -> &'static dyn Connector {
    match name {
        ConnectorName::Nixl => &nixl::Nixl,
    }
}
