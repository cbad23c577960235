//! What a pod's metrics say of leases that ran out.

/// Counters of vLLM 0.32: requests whose KV expired, and decoders that were done reading after that.
const COUNTERS: [&[u8]; 2] =
    [b"vllm:nixl_num_kv_expired_reqs_total{", b"vllm:nixl_num_notifications_after_expiry_total{"];

/// Both counters added up, of one data-parallel rank or of all; `None` if the page has neither.
pub fn kv_expired(page: &[u8], rank: Option<u32>) -> Option<u64> {
    let engine = rank.map(|rank| format!("engine=\"{rank}\""));
    let lines = page.split(|byte| *byte == b'\n').filter(|line| COUNTERS.iter().any(|name| line.starts_with(name)));
    let own = lines.filter(|line| {
        engine.as_ref().is_none_or(|engine| line.windows(engine.len()).any(|part| part == engine.as_bytes()))
    });
    own.filter_map(|line| {
        let value = std::str::from_utf8(line).ok()?.rsplit(' ').next()?.parse::<f64>().ok()?;
        Some(value as u64)
    })
    .reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_counters_are_added() {
        let page = b"# HELP x y\nvllm:nixl_num_kv_expired_reqs_total{engine=\"0\",model_name=\"m\"} 2.0\n\
            vllm:nixl_num_kv_expired_reqs_total{engine=\"1\",model_name=\"m\"} 5.0\n\
            vllm:nixl_num_notifications_after_expiry_total{engine=\"0\",model_name=\"m\"} 1.0\nvllm:other_total{} 9\n";
        assert_eq!((kv_expired(page, None), kv_expired(page, Some(0))), (Some(8), Some(3)));
        assert_eq!(kv_expired(b"vllm:other_total{} 9\n", None), None);
    }
}
