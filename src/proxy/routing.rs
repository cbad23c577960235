//! Which profile places a request, and what names its session: resolved from configuration, replaced whole on a reload.
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use xxhash_rust::xxh3::xxh3_64;

use crate::base::ModelName;
use crate::scheduling::Profile;

/// Longest name of a session that is heeded \[bytes\].
const SESSION_BYTES_MAX: usize = 512;

/// When another profile than the default places a request; all conditions must hold.
#[derive(Debug)]
pub struct Selection {
    /// Models it is for, after aliases; empty means any.
    pub models: Vec<ModelName>,
    /// Header that must be there, and its value if that matters.
    pub header: Option<(HeaderName, Option<String>)>,
    /// The profile.
    pub profile: Arc<Profile>,
}

/// How requests are placed.
#[derive(Debug, Default)]
pub struct Routing {
    /// The profile of requests that no selection is for.
    pub profile: Arc<Profile>,
    /// The first that applies counts.
    pub selections: Vec<Selection>,
    /// Header whose value names the session.
    pub session_header: Option<HeaderName>,
    /// Cookie that does, where the header is missing.
    pub session_cookie: Option<String>,
}

impl Routing {
    /// The profile for a request.
    pub fn profile(&self, model: &str, fields: &HeaderMap) -> &Arc<Profile> {
        let applies = |selection: &&Selection| {
            let is_model = selection.models.is_empty() || selection.models.iter().any(|name| &**name == model);
            let has_header = selection.header.as_ref().is_none_or(|(name, wanted)| match wanted {
                None => fields.contains_key(name),
                Some(wanted) => fields.get_all(name).iter().any(|value| value.as_bytes() == wanted.as_bytes()),
            });
            is_model && has_header
        };
        self.selections.iter().find(applies).map_or(&self.profile, |selection| &selection.profile)
    }

    /// Hash of the client's session; `None` if it names none.
    pub fn session(&self, fields: &HeaderMap) -> Option<u64> {
        let named = self.session_header.as_ref().and_then(|name| fields.get(name)).map(http::HeaderValue::as_bytes);
        let session = named.or_else(|| cookie(fields, self.session_cookie.as_deref()?))?;
        (1..=SESSION_BYTES_MAX).contains(&session.len()).then(|| xxh3_64(session))
    }
}

/// Value of a cookie.
fn cookie<'a>(fields: &'a HeaderMap, wanted: &str) -> Option<&'a [u8]> {
    let all = fields.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = all.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn the_first_selection_that_applies_counts() {
        let (by_model, by_header) = (Arc::new(Profile::default()), Arc::new(Profile::default()));
        let header = Some((HeaderName::from_static("x-batch"), Some("1".to_owned())));
        let routing = Routing {
            selections: vec![
                Selection { models: vec!["big".into()], header: None, profile: Arc::clone(&by_model) },
                Selection { models: Vec::new(), header, profile: Arc::clone(&by_header) },
            ],
            ..Routing::default()
        };
        let check = |model, fields: &HeaderMap, profile: &Arc<Profile>| {
            assert!(Arc::ptr_eq(routing.profile(model, fields), profile), "{model} {fields:?}");
        };
        let batch = fields(&[("x-batch", "1")]);
        check("big", &batch, &by_model);
        check("m", &batch, &by_header);
        check("m", &fields(&[("x-batch", "2")]), &routing.profile);
    }

    #[test]
    fn a_session_is_named_by_header_or_cookie() {
        let routing = Routing {
            session_header: Some(HeaderName::from_static("x-session-id")),
            session_cookie: Some("sid".into()),
            ..Routing::default()
        };
        let named = routing.session(&fields(&[("x-session-id", "abc"), ("cookie", "sid=other")]));
        assert_eq!(named, Some(xxh3_64(b"abc")));
        assert_eq!(routing.session(&fields(&[("cookie", "a=b; sid=abc; c=d")])), named);
        assert_eq!((routing.session(&fields(&[("cookie", "sid=")])), routing.session(&fields(&[]))), (None, None));
        assert_eq!(Routing::default().session(&fields(&[("x-session-id", "abc")])), None);
    }
}
