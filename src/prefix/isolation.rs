//! Salts that keep tenants' prompts apart in the pods' caches: a keyed hash of the tenant and of the salt the client sent itself.
//!
//! Without the secret nobody can name another tenant's salt; and a client's own salt still tells its own prompts apart.
use std::fmt;

use ring::hmac;

/// The secret salts are made with.
pub struct SaltKey(hmac::Key);

impl SaltKey {
    /// From bytes that nobody else knows. The same bytes make the same salts, on every gate.
    pub fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The salt of a tenant's requests that carry `own`: 64 hex digits, which vLLM takes (it allows 128 characters).
    pub fn salt(&self, tenant: &str, own: Option<&str>) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        // With its length in front no tenant's name runs into a salt.
        context.update(&(tenant.len() as u64).to_be_bytes());
        context.update(tenant.as_bytes());
        if let Some(own) = own {
            context.update(b"+");
            context.update(own.as_bytes());
        }
        let mut salt = String::with_capacity(64);
        for byte in context.sign().as_ref() {
            salt.extend([byte >> 4, byte & 15].map(|digit| char::from_digit(u32::from(digit), 16).unwrap_or('0')));
        }
        salt
    }
}

impl fmt::Debug for SaltKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn salts_differ_by_tenant_own_salt_and_secret() {
        let (key, other) = (SaltKey::new(b"secret"), SaltKey::new(b"another"));
        let salts = [
            key.salt("a", None),
            key.salt("b", None),
            key.salt("a", Some("")),
            key.salt("a", Some("s")),
            key.salt("a+s", None),
            other.salt("a", None),
        ];
        assert!(salts.iter().all(|salt| salt.len() == 64 && salt.bytes().all(|byte| byte.is_ascii_hexdigit())));
        assert_eq!(salts.iter().collect::<HashSet<_>>().len(), salts.len());
        assert_eq!(key.salt("a", Some("s")), SaltKey::new(b"secret").salt("a", Some("s")));
        assert_eq!(format!("{key:?}"), "[secret]");
    }
}
