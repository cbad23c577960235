//! Holds the fleet's rules on who may be used (`pods::verdict`), and lets a recovering pod take its share only.
//!
//! Reads: `standing` and `busy_until` (answers to our own requests, current), `is_dark` (scrapes), `shut` (scrapes, discovery, operators), `load` (own
//!   bookings), the request's excluded pods, the fleet's `ejected_share_max`.
//! Drops: ejected pods; pods that asked for a pause (`Retry-After`) while another is free; a half-open pod that already has a
//!   request without its first token; a ramping pod whose requests in flight have reached its share of the mean over the
//!   free pods (but it may always have one).
//! Range: keep or drop. *Panic*: when more than `ejected_share_max` of the pods not yet tried are out, those come back. While
//!   usable pods are left each gets one unanswered request at a time, and no retry goes there, so that dead pods, which look
//!   idle, do not draw the traffic; with none left there is no restraint.
//! Unknown: a pod never tried is as its standing says (new pods ramp); if no pod is free there is nothing to ramp against.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pods::{Absent, Census, Rule, Standing};
use crate::scheduling::{Candidates, Context, Filter, Nobody, PodView, Verdict};

/// Settings of `health`: none; when a pod is ill, and how many may be, is set under `pods.health`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct Health;

/// Makes the filter.
pub fn build(_: &Settings) -> Box<dyn Filter> {
    Box::new(Health)
}

/// What the single verdicts depend on: the pods that were not tried for this request.
struct Fleet {
    rule: Rule,
    has_usable: bool,
    is_retry: bool,
    /// Mean requests in flight of the free pods with a full share; `None` without one.
    fair: Option<f64>,
}

impl Fleet {
    fn survey(cx: &Context<'_>, pods: &Candidates<'_>) -> Self {
        let (mut census, mut full, mut requests) = (Census::default(), 0_u32, 0.0);
        for pod in pods.iter().filter(|pod| !cx.request.excluded.contains(&pod.id)) {
            let sign = pod.sign();
            census.add(&sign);
            if sign.standing == Standing::Ready && sign.busy_until.is_none() && sign.shut.is_none() {
                full += 1;
                requests += f64::from(pod.load.requests);
            }
        }
        census.free += cx.left_out.pods;
        full += cx.left_out.pods;
        requests += cx.left_out.requests;
        Self {
            rule: census.rule(cx.ejected_share_max),
            has_usable: census.free + census.busy > 0,
            is_retry: !cx.request.excluded.is_empty(),
            fair: (full > 0).then(|| requests / f64::from(full)),
        }
    }

    fn verdict(&self, pod: &PodView) -> Verdict {
        let is_out = matches!(pod.standing, Standing::Ejected(_) | Standing::Probe);
        match self.rule.apply(&pod.sign()) {
            Err(Absent::Shut(why)) => Verdict::Drop(why.as_str()),
            Err(Absent::Ejected(_)) => Verdict::Drop("ejected"),
            Err(Absent::Down) => Verdict::Drop("ejected and out of telemetry's reach"),
            Err(Absent::Busy(_)) => Verdict::Drop("asked for a pause while others are free"),
            Ok(Standing::Ramp(share)) => self.share(pod, share),
            Ok(_) if is_out && self.has_usable => self.half_open(pod),
            Ok(_) => Verdict::Keep,
        }
    }

    fn share(&self, pod: &PodView, share: f64) -> Verdict {
        let has_room = |fair: f64| f64::from(pod.load.requests) < (fair * share).floor().max(1.0);
        if self.fair.is_none_or(has_room) { Verdict::Keep } else { Verdict::Drop("has its share while it recovers") }
    }

    fn half_open(&self, pod: &PodView) -> Verdict {
        if self.is_retry {
            Verdict::Drop("not for a retry while better pods are left")
        } else if pod.load.unanswered > 0 {
            Verdict::Drop("its probe is out")
        } else {
            Verdict::Keep
        }
    }
}

impl Filter for Health {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        if pods.iter().all(|pod| pod.standing == Standing::Ready && pod.busy_until.is_none() && pod.shut.is_none()) {
            return;
        }
        let fleet = Fleet::survey(cx, pods);
        for (pod, slot) in pods.iter().zip(verdicts) {
            if !cx.request.excluded.contains(&pod.id) {
                *slot = fleet.verdict(pod);
            }
        }
    }

    fn nobody(&self) -> Nobody {
        Nobody::AllEjected
    }

    fn yields_to_pin(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use Standing::{Probe, Ramp, Ready};

    use super::*;
    use crate::base::{Mono, PodId, Tokens};
    use crate::scheduling::Request;
    use crate::scheduling::testing::{judged, loaded, pod};

    const OUT: Standing = Standing::Ejected(Mono(99_000_000));

    /// Pods as (standing, requests in flight, of these prefilling). Excluded pods are left to the filter of that name.
    fn check(excluded: &[u32], pods: &[(Standing, u32, u32)], kept: &[bool]) {
        let view = |(id, &(standing, requests, prefilling)): (u32, &(Standing, u32, u32))| PodView {
            standing,
            ..loaded(id, requests, prefilling, 0)
        };
        check_views(excluded, &(0..).zip(pods).map(view).collect::<Vec<_>>(), kept);
    }

    fn check_views(excluded: &[u32], pods: &[PodView], kept: &[bool]) {
        let excluded: Vec<_> = excluded.iter().copied().map(PodId).collect();
        let request = Request { excluded: &excluded, ..Request::new("m", Tokens(10)) };
        assert_eq!(judged(&*build(&Settings::default()), &request, pods), kept, "{pods:?}");
    }

    #[test]
    fn ejected_pods_are_out_until_most_are() {
        check(&[], &[(Ready, 5, 0), (Ready, 5, 0), (OUT, 0, 0)], &[true, true, false]);
        check(&[], &[(Ready, 5, 0), (OUT, 0, 0)], &[true, false]);
        check(&[], &[(Ready, 5, 0), (OUT, 0, 0), (OUT, 3, 1)], &[true, true, false]);
        check(&[], &[(OUT, 5, 5), (OUT, 9, 9)], &[true, true]);
        check(&[], &[(OUT, 1, 1)], &[true]);
        check(&[], &[(Probe, 4, 4)], &[true]);
    }

    #[test]
    fn a_half_open_pod_gets_one_request_and_no_retry() {
        check(&[], &[(Ready, 0, 0), (Ready, 0, 0), (Probe, 3, 0)], &[true, true, true]);
        check(&[], &[(Ready, 0, 0), (Ready, 0, 0), (Probe, 3, 1)], &[true, true, false]);
        check(&[0], &[(Ready, 0, 0), (Ready, 0, 0), (Probe, 0, 0)], &[true, true, false]);
    }

    #[test]
    fn a_retry_prefers_pods_in_good_standing_and_takes_what_is_left() {
        check(&[1], &[(Ready, 5, 0), (OUT, 0, 0), (OUT, 0, 0)], &[true, true, false]);
        check(&[0], &[(Ready, 5, 0), (Ready, 5, 0), (OUT, 0, 0), (OUT, 0, 0)], &[true, true, false, false]);
        check(&[0], &[(Ready, 5, 0), (OUT, 0, 0)], &[true, true]);
        check(&[0], &[(Ready, 5, 0), (Ramp(0.1), 50, 0)], &[true, true]);
    }

    #[test]
    fn a_ramping_pod_takes_its_share() {
        check(&[], &[(Ready, 20, 0), (Ready, 20, 0), (Ramp(0.5), 9, 0)], &[true, true, true]);
        check(&[], &[(Ready, 20, 0), (Ready, 20, 0), (Ramp(0.5), 10, 0)], &[true, true, false]);
        check(&[], &[(Ready, 0, 0), (Ramp(0.1), 0, 0), (Ramp(0.1), 1, 0)], &[true, true, false]);
        check(&[], &[(Ramp(0.1), 30, 0), (Ramp(0.2), 90, 0)], &[true, true]);
    }

    #[test]
    fn a_pod_that_asked_for_a_pause_is_spared_while_another_is_free() {
        let busy = |id| PodView { busy_until: Some(Mono(99_000_000)), ..pod(id) };
        let ramping = PodView { standing: Ramp(0.1), ..loaded(2, 9, 0, 0) };
        check_views(&[], &[pod(0), busy(1)], &[true, false]);
        check_views(&[], &[busy(0), busy(1)], &[true, true]);
        check_views(&[0], &[pod(0), busy(1)], &[true, true]);
        check_views(&[], &[busy(0), busy(1), ramping], &[false, false, true]);
        check_views(&[], &[pod(0), busy(1), ramping], &[true, false, false]);
    }

    #[test]
    fn a_pod_that_is_down_is_for_the_last_resort() {
        let down = |id| PodView { standing: OUT, is_dark: true, ..pod(id) };
        let out = |id| PodView { standing: OUT, ..pod(id) };
        check_views(&[], &[out(0), out(1), down(2)], &[true, true, false]);
        check_views(&[], &[down(0), down(1)], &[true, true]);
        check_views(&[], &[PodView { is_dark: true, ..pod(0) }, out(1)], &[true, false]);
    }
}
