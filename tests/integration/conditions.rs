//! The conditions of services, compared with a second, plain implementation on random cases.
#![expect(
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a failed index is a failed test"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use anklume::condition::misfits;
use anklume::policy::{Caller, Decision, Denial, Request, decide};
use anklume::services::Services;
use serde_json::{Map, Value, json};

/// Random numbers that are the same in each run (xorshift64, by Marsaglia).
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % below
    }

    fn of<T: Clone>(&mut self, some: &[T]) -> T {
        some[self.next(some.len())].clone()
    }

    fn happens(&mut self, percent: usize) -> bool {
        self.next(100) < percent
    }
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Names that the tool does not have.
const OTHERS: [&str; 2] = ["A", "e"];

fn texts() -> Vec<&'static str> {
    vec![
        "",
        "a",
        "ab",
        "abc",
        "A",
        "é",
        "e\u{301}",
        "€€",
        "/",
        "/srv",
        "/srv/",
        "/srv/app",
        "/srv/./app//x",
        "/srv/appx",
        "/srv/app/../x",
        "srv/app",
        "./srv",
        "..",
        ".",
        "1",
        "null",
        "a\0b",
        "/srv/app\0",
    ]
}

fn numbers() -> Vec<Value> {
    vec![
        json!(0),
        json!(-0.0),
        json!(1),
        json!(1.0),
        json!(-1),
        json!(1.5),
        json!(2),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(18_446_744_073_709_551_616.0),
        json!(9_007_199_254_740_993_u64),
        json!(9_007_199_254_740_992.0),
        json!(1e300),
        json!(-1e300),
        json!(5e-324),
    ]
}

fn value(random: &mut Random, depth: usize) -> Value {
    match random.next(if depth == 0 { 4 } else { 6 }) {
        0 => random.of(&texts()).into(),
        1 | 2 => random.of(&numbers()),
        3 => random.of(&[json!(true), json!(false), Value::Null]),
        4 => (0..random.next(3))
            .map(|_| value(random, depth - 1))
            .collect(),
        _ => object(random, depth - 1),
    }
}

fn object(random: &mut Random, depth: usize) -> Value {
    let mut members = Map::new();
    for _ in 0..random.next(3) {
        members.insert(random.of(&NAMES).to_owned(), value(random, depth));
    }
    members.into()
}

/// The same value with the keys of its objects in another order.
fn turned(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(turned).collect(),
        Value::Object(members) => {
            let members = members.iter().rev();
            Value::Object(
                members
                    .map(|(key, value)| (key.clone(), turned(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

fn rule(random: &mut Random) -> Value {
    let mut rule = Map::new();
    for key in [
        "const",
        "enum",
        "prefix",
        "path_under",
        "max_length",
        "max_bytes",
        "min",
        "max",
        "absent",
    ] {
        if !random.happens(25) {
            continue;
        }
        let part = match key {
            "const" => match value(random, 1) {
                Value::Null => json!(1),
                part => part,
            },
            "enum" => (0..=random.next(2)).map(|_| value(random, 1)).collect(),
            "prefix" | "path_under" => random.of(&texts()).into(),
            "max_length" | "max_bytes" => random.next(4).into(),
            "min" | "max" => random.of(&numbers()),
            _ => true.into(),
        };
        rule.insert(key.to_owned(), part);
    }
    rule.into()
}

/// A number in full, as its sign and the digits before and after the point.
fn digits(number: &Value) -> (bool, String, String) {
    let text = match number.as_f64() {
        Some(float) if number.is_f64() => format!("{float:.1100}"),
        _ => number.to_string(),
    };
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest.to_owned()),
        None => (false, text),
    };
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let whole = whole.trim_start_matches('0').to_owned();
    let part = part.trim_end_matches('0').to_owned();
    // Zero has no sign.
    (
        is_negative && !(whole.is_empty() && part.is_empty()),
        whole,
        part,
    )
}

fn at_most(one: &Value, other: &Value) -> bool {
    let ((one_sign, one_whole, one_part), (other_sign, other_whole, other_part)) =
        (digits(one), digits(other));
    let one_size = (one_whole.len(), one_whole, one_part);
    let other_size = (other_whole.len(), other_whole, other_part);
    match (one_sign, other_sign) {
        (false, false) => one_size <= other_size,
        (true, true) => other_size <= one_size,
        (is_negative, _) => is_negative,
    }
}

/// A form that is the same for the same values.
fn canonical(value: &Value) -> String {
    match value {
        Value::Number(_) => format!("{:?}", digits(value)),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(canonical).collect::<Vec<_>>().join(",")
        ),
        Value::Object(members) => {
            let members = members
                .iter()
                .map(|(key, value)| format!("{key:?}:{}", canonical(value)));
            format!(
                "{{{}}}",
                members
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect::<Vec<_>>()
                    .join(",")
            )
        }
        other => other.to_string(),
    }
}

/// The components of a path, begun by `/` if it is absolute; `None` if it is refused.
fn components(path: &str) -> Option<Vec<&str>> {
    if path.is_empty() || path.contains('\0') {
        return None;
    }
    let mut components = if path.starts_with('/') {
        vec!["/"]
    } else {
        vec![]
    };
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => return None,
            other => components.push(other),
        }
    }
    Some(components)
}

fn satisfies(key: &str, part: &Value, sent: &Value) -> bool {
    let limit = part.as_u64();
    match (key, sent) {
        ("absent", _) => true,
        ("const", _) => canonical(part) == canonical(sent),
        ("enum", _) => part
            .as_array()
            .unwrap()
            .iter()
            .any(|one| canonical(one) == canonical(sent)),
        ("prefix", Value::String(sent)) => sent
            .as_bytes()
            .starts_with(part.as_str().unwrap().as_bytes()),
        ("path_under", Value::String(sent)) => {
            match (components(part.as_str().unwrap()), components(sent)) {
                (Some(base), Some(sent)) => {
                    (base.first() == Some(&"/")) == (sent.first() == Some(&"/"))
                        && sent.len() >= base.len()
                        && sent[..base.len()] == base[..]
                }
                _ => false,
            }
        }
        ("max_length", Value::String(sent)) => sent.chars().count() as u64 <= limit.unwrap(),
        ("max_bytes", Value::String(sent)) => sent.len() as u64 <= limit.unwrap(),
        ("min", Value::Number(_)) => at_most(part, sent),
        ("max", Value::Number(_)) => at_most(sent, part),
        _ => false,
    }
}

/// Whether a call with these arguments is allowed.
fn expected(service: &Value, sent: &Map<String, Value>, now: i64) -> bool {
    let conditions = &service["conditions"];
    if let Some(expires) = conditions["expires"].as_str() {
        let expires: i64 = expires["1970-01-01T00:00:".len()..][..2].parse().unwrap();
        if now > expires {
            return false;
        }
    }
    let sent: Map<String, Value> = sent
        .clone()
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .collect();
    for (name, value) in &sent {
        let is_fixed = service["with"].get(name);
        if is_fixed.is_some_and(|fixed| canonical(fixed) != canonical(value)) {
            return false;
        }
        // Another name could be another spelling.
        let is_restricted = ["with", "conditions/where"].iter().any(|part| {
            let part = service.pointer(&format!("/{part}"));
            part.is_some_and(|part| part.as_object().is_some_and(|part| !part.is_empty()))
        });
        if is_restricted && !NAMES.contains(&name.as_str()) {
            return false;
        }
        if let Some(only) = conditions["only"].as_array()
            && is_fixed.is_none()
            && !only.contains(&name.as_str().into())
        {
            return false;
        }
    }
    conditions["where"]
        .as_object()
        .unwrap()
        .iter()
        .all(|(name, rule)| {
            let rule = rule.as_object().unwrap();
            let may_be_absent = rule.get("absent").is_some();
            match sent.get(name) {
                None => may_be_absent || rule.is_empty(),
                Some(_) if may_be_absent && rule.len() == 1 => false,
                Some(value) => rule.iter().all(|(key, part)| satisfies(key, part, value)),
            }
        })
}

fn decision(services: &Services, name: &str, sent: &Map<String, Value>, now: i64) -> Decision {
    let request = Request {
        caller: &Caller::Consumer("dev".parse().unwrap()),
        name,
        arguments: &Arc::new(sent.clone()),
        now: jiff::Timestamp::from_second(now).unwrap(),
    };
    decide(services, request)
}

/// Checks that two decisions on one call are the same.
fn check_same(decided: &Decision, turned: &Decision, case: &str) {
    match (decided, turned) {
        (Decision::Allowed(one), Decision::Allowed(other)) => {
            assert_eq!(
                Value::from(one.arguments().clone()),
                Value::from(other.arguments().clone())
            );
        }
        // Which of several fixed arguments is named is not settled.
        (
            Decision::Denied(Denial::FixedArgument { .. }),
            Decision::Denied(Denial::FixedArgument { .. }),
        ) => {}
        // A value is written as the policy writes it.
        (Decision::Denied(Denial::Condition(one)), Decision::Denied(Denial::Condition(other))) => {
            assert_eq!((&one.argument, one.rule), (&other.argument, other.rule));
        }
        (Decision::Denied(one), Decision::Denied(other)) => assert_eq!(one, other),
        (one, other) => assert_eq!(format!("{one:?}"), format!("{other:?}"), "{case}"),
    }
}

/// Compares this many random cases; returns how many were allowed. Rules that are said to refuse every value do.
fn compare(cases: usize) -> usize {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut allowed, mut refusing) = (0, 0);
    for number in 0..cases {
        let mut rules = Map::new();
        for name in NAMES {
            if random.happens(30) {
                rules.insert(name.to_owned(), rule(&mut random));
            }
        }
        let mut conditions = json!({"where": rules});
        if random.happens(20) {
            let names = NAMES.iter().filter(|_| random.happens(70));
            conditions["only"] = names.copied().collect();
        }
        if random.happens(20) {
            conditions["expires"] = "1970-01-01T00:00:05Z".into();
        }
        let mut with = Map::new();
        if random.happens(10) {
            with.insert(random.of(&NAMES).to_owned(), value(&mut random, 1));
        }
        let schema = json!({"type": "object", "properties": {"a": {}, "b": {}, "c": {}, "d": {}}});
        let service = json!({"name": "s", "tool": "x/y", "consumers": ["dev"], "with": with, "conditions": conditions});
        let plain = json!({"name": "plain", "tool": "x/y", "consumers": ["dev"], "with": with});
        let server = json!({
            "command": ["/x"], "idle_seconds": 1, "process": {"memory": 16_777_216},
            "tools": {"y": {"name": "y", "inputSchema": schema}},
        });
        let services =
            json!({"machine": "vault", "services": [service, plain], "servers": {"x": server}});
        let services: Services = serde_json::from_value(services).unwrap();
        let mut sent = Map::new();
        for name in NAMES {
            // Often what the rule names, so that many calls are allowed.
            let named = conditions["where"][name]
                .get("const")
                .or_else(|| conditions["where"][name]["enum"].get(0));
            if random.happens(60) {
                let named = named.cloned().filter(|_| random.happens(60));
                sent.insert(
                    name.to_owned(),
                    named.unwrap_or_else(|| value(&mut random, 1)),
                );
            }
        }
        for name in OTHERS {
            if random.happens(10) {
                sent.insert(name.to_owned(), value(&mut random, 1));
            }
        }
        let now = 4 + i64::try_from(random.next(3)).unwrap();
        let decided = decision(&services, "s", &sent, now);
        let is_allowed = matches!(decided, Decision::Allowed(_));
        let case = || {
            format!(
                "case {number}: {service} for {} at {now}: {decided:?}",
                Value::from(sent.clone())
            )
        };
        assert_eq!(is_allowed, expected(&service, &sent, now), "{}", case());
        // A condition never allows what the service without it refuses.
        let without = decision(&services, "plain", &sent, now);
        let faults = misfits(
            &services.services[0].conditions,
            None,
            &services.services[0].with,
        );
        let mut faults = faults.iter();
        let refused = faults.find(|fault| fault.help.contains("no value satisfies it"));
        if let Some(fault) = refused {
            refusing += 1;
            let is_sent = sent.get(&fault.argument).is_some_and(|one| !one.is_null());
            assert!(!is_allowed || !is_sent, "{}", case());
        }
        assert!(
            !is_allowed || matches!(without, Decision::Allowed(_)),
            "{}",
            case()
        );
        // Neither the order of keys nor reading the file again changes anything.
        let again =
            serde_json::from_value(turned(&serde_json::to_value(&services).unwrap())).unwrap();
        let sent = turned(&sent.clone().into());
        let turned = decision(&again, "s", sent.as_object().unwrap(), now);
        check_same(&decided, &turned, &case());
        allowed += usize::from(is_allowed);
    }
    assert!(refusing * 50 > cases, "{refusing}");
    allowed
}

#[test]
fn conditions_decide_as_a_second_implementation_does() {
    let allowed = compare(10_000);
    // Neither side says only yes, or only no.
    assert!((1000..9000).contains(&allowed), "{allowed}");
}

#[test]
#[ignore = "long"]
fn conditions_decide_a_million_times_as_a_second_implementation_does() {
    compare(1_000_000);
}
