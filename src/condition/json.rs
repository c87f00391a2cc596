//! Compares JSON values, and paths in them, as values: not as they are written.

use std::cmp::Ordering;

use serde_json::{Number, Value};

/// Returns whether two values are the same: 1 and 1.0 are one number, and the order of an object's keys has no meaning.
#[must_use]
pub fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => compare(one, other) == Ordering::Equal,
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .zip(other)
                    .all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(key, value)| other.get(key).is_some_and(|other| is_same(value, other)))
        }
        _ => one == other,
    }
}

/// Compares two numbers exactly, also where one is beyond what the type of the other can hold.
pub(super) fn compare(one: &Number, other: &Number) -> Ordering {
    match (integer(one), integer(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        (Some(one), None) => with_float(one, other),
        (None, Some(other)) => with_float(other, one).reverse(),
        // Numbers in JSON are finite, so that the comparison exists.
        (None, None) => {
            let floats = (one.as_f64(), other.as_f64());
            floats.0.partial_cmp(&floats.1).unwrap_or(Ordering::Greater)
        }
    }
}

fn integer(number: &Number) -> Option<i128> {
    let positive = number.as_u64().map(i128::from);
    positive.or_else(|| number.as_i64().map(i128::from))
}

/// Compares an integer of at most 64 bits with a floating-point number.
fn with_float(integer: i128, float: &Number) -> Ordering {
    let Some(float) = float.as_f64() else {
        return Ordering::Greater;
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the cast saturates, far beyond 64 bits"
    )]
    let whole = float.floor() as i128;
    let has_fraction = float > float.floor();
    match integer.cmp(&whole) {
        Ordering::Equal if has_fraction => Ordering::Less,
        order => order,
    }
}

/// The components of a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Path<'a> {
    pub(super) is_absolute: bool,
    pub(super) components: Vec<&'a str>,
}

/// Splits a path into its components, without `.` and empty ones; `None` if it is empty, leads upwards, or has a NUL,
/// which would end it early for some programs.
pub(super) fn path(text: &str) -> Option<Path<'_>> {
    let components = text.split('/').filter(|part| !["", "."].contains(part));
    let components: Vec<&str> = components.collect();
    let is_refused = text.is_empty() || text.contains('\0') || components.contains(&"..");
    (!is_refused).then(|| Path {
        is_absolute: text.starts_with('/'),
        components,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_and_not_their_spelling() {
        for (one, other) in [
            (json!(1), json!(1.0)),
            (json!(0), json!(-0.0)),
            (
                json!([1, {"a": 2.0, "b": []}]),
                json!([1.0, {"b": [], "a": 2}]),
            ),
            (
                json!(9_007_199_254_740_992_u64),
                json!(9_007_199_254_740_992.0),
            ),
        ] {
            assert!(
                is_same(&one, &other) && is_same(&other, &one),
                "{one} {other}"
            );
        }
        for (one, other) in [
            (json!(1), json!("1")),
            (
                json!(9_007_199_254_740_993_u64),
                json!(9_007_199_254_740_992.0),
            ),
            (json!(u64::MAX), json!(18_446_744_073_709_551_616.0)),
            (json!(i64::MIN), json!(i64::MIN + 1)),
            // The same letter in two Unicode forms.
            (json!("\u{e9}"), json!("e\u{301}")),
            (json!([1]), json!([1, 2])),
            (json!({"a": 1}), json!({"a": 1, "b": 1})),
            (json!(true), json!(1)),
        ] {
            assert!(
                !is_same(&one, &other) && !is_same(&other, &one),
                "{one} {other}"
            );
        }
    }

    #[test]
    fn a_path_has_components() {
        let components = |text| path(text).map(|path| path.components);
        assert_eq!(components("/srv//app/./x/"), Some(vec!["srv", "app", "x"]));
        assert_eq!(components("."), Some(vec![]));
        for refused in ["", "/srv/../etc", "..", "a\0b"] {
            assert_eq!(components(refused), None, "{refused}");
        }
        // Only whole components count.
        assert_eq!(components("/srv/..x"), Some(vec!["srv", "..x"]));
    }
}
