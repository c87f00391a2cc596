//! Decides whether a caller may use a service with given arguments.
//!
//! Only [`decide`] answers that question and creates a [`Grant`], without which no tool runs. Pure: no file, no
//! network; the time is part of the question.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::catalogue::{self, Definition, OFFER_TO, SshSign, operator_only};
use crate::condition::{BrokenCondition, Conditions, Expiry, is_same};
use crate::name::{MachineName, ServiceName, ServiceTool, ToolName};
use crate::services::{Service, Services};
use crate::ssh::{self, Purpose, Refusal};
use crate::text::{listed, shown};

/// Maximum length of a name that a message repeats, in characters.
const NAME_SHOWN: usize = 80;

/// The caller, known from the channel and never from a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The person who runs anklume on the host or locally; already root, and allowed to use all tools by name, and
    /// the machine's services.
    Operator,
    /// The machine to which the channel belongs.
    Consumer(MachineName),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // No machine can have this name.
            Self::Operator => f.write_str("(operator)"),
            Self::Consumer(name) => name.fmt(f),
        }
    }
}

/// A call to decide on.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The caller.
    pub caller: &'a Caller,
    /// The name of a service; for the operator, also of a tool.
    pub name: &'a str,
    /// The caller's arguments, which may be large; a `null` counts as absent.
    pub arguments: &'a Arc<Map<String, Value>>,
    /// The time of the call.
    pub now: Timestamp,
}

/// The decision on a call.
#[must_use]
#[derive(Debug)]
pub enum Decision {
    /// The call may run.
    Allowed(Grant),
    /// The call may not run.
    Denied(Denial),
}

/// The proof that this caller may use this service with these arguments; only [`decide`] creates one.
#[derive(Debug)]
pub struct Grant {
    caller: Caller,
    name: String,
    tool: ServiceTool,
    arguments: Arc<Map<String, Value>>,
    purpose: Option<Purpose>,
}

impl Grant {
    /// Returns the caller.
    #[must_use]
    pub const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Returns the name of the service, or of the tool that the operator named.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the tool to run.
    #[must_use]
    pub const fn tool(&self) -> &ServiceTool {
        &self.tool
    }

    /// Returns what a signature of `ssh_sign` is for; `None` for other tools, and for arguments that the tool refuses.
    #[must_use]
    pub const fn purpose(&self) -> Option<&Purpose> {
        self.purpose.as_ref()
    }

    /// Returns the caller's arguments merged with the service's fixed ones.
    #[must_use]
    pub fn arguments(&self) -> &Map<String, Value> {
        &self.arguments
    }

    /// Returns the same, to be kept.
    #[must_use]
    pub fn shared_arguments(&self) -> Arc<Map<String, Value>> {
        Arc::clone(&self.arguments)
    }
}

/// The reason why a call may not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// The machine offers no service of that name; for the operator, no such tool exists either.
    Unknown,
    /// The service exists, but only for other consumers.
    NotConsumer {
        /// The service.
        service: ServiceName,
        /// Its consumers.
        consumers: Vec<MachineName>,
        /// The location of its declaration, if known.
        declared_at: Option<String>,
    },
    /// The operator offers something to a machine to which no service gives offers.
    NoOffers {
        /// The machine, as written.
        consumer: String,
        /// The machines that something can be offered to.
        others: Vec<MachineName>,
    },
    /// What is to be signed is not what the service signs.
    NotSigned(Refusal),
    /// The service has expired.
    Expired {
        /// The service.
        service: ServiceName,
        /// The time at which it ended.
        expiry: Expiry,
    },
    /// An argument breaks a condition of the service.
    Condition(BrokenCondition),
    /// The caller sent an argument that it may not choose.
    FixedArgument {
        /// The argument's name.
        argument: String,
    },
}

/// Explains [`Denial::NoOffers`].
#[must_use]
pub fn no_offers(consumer: &str, others: &[MachineName]) -> String {
    let consumer = shown(consumer, NAME_SHOWN);
    let others: Vec<&str> = others.iter().map(MachineName::as_str).collect();
    let others = match others.as_slice() {
        [] => "no machine is".to_owned(),
        some => format!("these are: {}", listed(some)),
    };
    format!("`{consumer}` is not a consumer of a service with `offered_only: true`; {others}")
}

/// Decides on a call according to the services of the machine that received it.
pub fn decide(services: &Services, request: Request<'_>) -> Decision {
    match request.caller {
        Caller::Operator => decide_operator(services, request),
        Caller::Consumer(_) => decide_service(services, request),
    }
}

/// A tool's name comes first: the operator means the tool itself, not a service of that name.
fn decide_operator(services: &Services, request: Request<'_>) -> Decision {
    let named = request.name.parse::<ToolName>();
    if let Some(tool) = named.ok().filter(|tool| ToolName::LISTED.contains(tool)) {
        if let Some(consumer) = offered_to(tool, request) {
            let others = offered_consumers(services, request.now);
            if !others.iter().any(|other| other.as_str() == consumer) {
                let consumer = consumer.to_owned();
                return Decision::Denied(Denial::NoOffers { consumer, others });
            }
        }
        return Decision::Allowed(Grant {
            caller: Caller::Operator,
            name: tool.as_str().to_owned(),
            tool: tool.into(),
            arguments: sent(request.arguments),
            purpose: None,
        });
    }
    decide_service(services, request)
}

fn decide_service(services: &Services, request: Request<'_>) -> Decision {
    let granted = usable(services, request).and_then(|service| grant(services, service, request));
    match granted {
        Ok(grant) => Decision::Allowed(grant),
        Err(denial) => Decision::Denied(denial),
    }
}

/// Returns the service of that name if the caller may use it now, whatever it sends.
fn usable<'a>(services: &'a Services, request: Request<'_>) -> Result<&'a Service, Denial> {
    let service = services.service(request.name).ok_or(Denial::Unknown)?;
    if let Caller::Consumer(consumer) = request.caller
        && !service.serves(consumer)
    {
        return Err(Denial::NotConsumer {
            service: service.name.clone(),
            consumers: service.consumers.clone(),
            declared_at: service.declared_at.clone(),
        });
    }
    match service.conditions.expires {
        Some(expiry) if service.conditions.have_expired(request.now) => Err(Denial::Expired {
            service: service.name.clone(),
            expiry,
        }),
        _ => Ok(service),
    }
}

/// Returns the machine to which a call offers the clipboard.
fn offered_to(tool: ToolName, request: Request<'_>) -> Option<&str> {
    let consumer = request.arguments.get(OFFER_TO)?.as_str()?;
    (tool == ToolName::ClipboardSet).then_some(consumer)
}

/// Returns the machines to which something can be offered, each once.
fn offered_consumers(services: &Services, now: Timestamp) -> Vec<MachineName> {
    let giving = services.services.iter();
    let giving = giving.filter(|service| {
        catalogue::gives_offers(&service.tool, &service.with)
            && !service.conditions.have_expired(now)
    });
    let consumers: BTreeSet<&MachineName> = giving.flat_map(|service| &service.consumers).collect();
    consumers.into_iter().cloned().collect()
}

/// Decides on the arguments of a caller that may use the service.
fn grant(services: &Services, service: &Service, request: Request<'_>) -> Result<Grant, Denial> {
    let sent = sent(request.arguments);
    let arguments = merge(services, service, request.caller, &sent)?;
    let conditions = &service.conditions;
    conditions
        .check(&sent, &service.with)
        .map_err(Denial::Condition)?;
    let purpose = purpose(&service.tool, &arguments).map_err(Denial::NotSigned)?;
    Ok(Grant {
        caller: request.caller.clone(),
        name: service.name.as_str().to_owned(),
        tool: service.tool.clone(),
        arguments,
        purpose,
    })
}

/// Returns what a signature of `ssh_sign` would be for; `None` for other tools, and for arguments that the tool refuses.
fn purpose(tool: &ServiceTool, arguments: &Map<String, Value>) -> Result<Option<Purpose>, Refusal> {
    if !tool.is(ToolName::SshSign) {
        return Ok(None);
    }
    let request = catalogue::parse(ToolName::SshSign, arguments);
    let request = request.and_then(|arguments: SshSign| arguments.request());
    request
        .ok()
        .map(|request| ssh::authorize(&request))
        .transpose()
}

/// Returns the arguments without `null` values, which some models send for arguments that they mean to leave out.
#[must_use]
pub fn sent(arguments: &Arc<Map<String, Value>>) -> Arc<Map<String, Value>> {
    if !arguments.values().any(Value::is_null) {
        return Arc::clone(arguments);
    }
    let sent = arguments.iter().filter(|(_, value)| !value.is_null());
    let sent = sent.map(|(name, value)| (name.clone(), value.clone()));
    Arc::new(sent.collect())
}

/// Merges the arguments that the caller sent with the fixed ones; a caller may repeat a fixed value.
fn merge(
    services: &Services,
    service: &Service,
    caller: &Caller,
    sent: &Arc<Map<String, Value>>,
) -> Result<Arc<Map<String, Value>>, Denial> {
    let chosen = sent
        .iter()
        .find(|(key, value)| match service.with.get(*key) {
            Some(fixed) => !repeats(&service.tool, key, fixed, value),
            None => {
                !may_choose(caller, &service.tool, &service.with, key)
                    || is_other_spelling(services, service, key)
            }
        });
    if let Some((argument, _)) = chosen {
        return Err(Denial::FixedArgument {
            argument: argument.clone(),
        });
    }
    let mut merged = Arc::clone(sent);
    if !service.with.is_empty() {
        Arc::make_mut(&mut merged).extend(service.with.clone());
    }
    Ok(merged)
}

/// Returns whether an argument could be another spelling of one that is fixed or has a rule to an upstream, which may
/// ignore case or know aliases: beside those, a caller chooses only what the pinned definition names.
fn is_other_spelling(services: &Services, service: &Service, argument: &str) -> bool {
    match services.definition(&service.tool) {
        Some(Definition::Upstream(tool)) => {
            let is_restricted = !service.with.is_empty() || !service.conditions.rules.is_empty();
            is_restricted && !tool.arguments().any(|known| known == argument)
        }
        _ => false,
    }
}

/// Returns whether a caller sent the fixed value, possibly written differently.
fn repeats(tool: &ServiceTool, argument: &str, fixed: &Value, sent: &Value) -> bool {
    match (fixed, sent) {
        (Value::String(fixed), Value::String(sent))
            if tool.is(ToolName::GpgSign) && argument == "key_id" =>
        {
            catalogue::repeats_key(fixed, sent)
        }
        _ => is_same(fixed, sent),
    }
}

/// Returns whether a caller may choose an argument where a service's `with` fixes these.
#[must_use]
pub fn may_choose(
    caller: &Caller,
    tool: &ServiceTool,
    fixed: &Map<String, Value>,
    argument: &str,
) -> bool {
    let built_in = tool.built_in();
    let alternative = built_in.and_then(|tool| catalogue::alternative(tool, argument));
    let is_ruled_out = alternative.is_some_and(|other| fixed.contains_key(other));
    !fixed.contains_key(argument)
        && !is_ruled_out
        && (*caller == Caller::Operator
            || !built_in.is_some_and(|tool| operator_only(tool, argument)))
}

/// A service that a caller may use, or one of the operator's tools.
#[derive(Debug, Clone)]
pub struct ServiceOffer {
    /// The name to call.
    pub name: String,
    /// The tool to run.
    pub tool: ServiceTool,
    /// Arguments that the service fixes, hidden from the caller's schema.
    pub fixed: Map<String, Value>,
    /// What the caller may send, and until when.
    pub conditions: Conditions,
}

/// Returns whether a caller may use a service at this time, whatever it sends.
///
/// # Errors
///
/// Returns the reason why it may not.
pub fn may_use(
    services: &Services,
    caller: &Caller,
    name: &str,
    now: Timestamp,
) -> Result<(), Denial> {
    let request = Request {
        caller,
        name,
        arguments: &Arc::default(),
        now,
    };
    usable(services, request).map(drop)
}

/// Lists what a caller may use at this time: every name that [`decide`] does not refuse whatever is sent.
#[must_use]
pub fn offers(services: &Services, caller: &Caller, now: Timestamp) -> Vec<ServiceOffer> {
    let tools: &[ToolName] = match caller {
        Caller::Operator => &ToolName::LISTED,
        Caller::Consumer(_) => &[],
    };
    let named = tools.iter().map(|tool| ServiceOffer {
        name: tool.as_str().to_owned(),
        tool: (*tool).into(),
        fixed: Map::new(),
        conditions: Conditions::default(),
    });
    let usable = services.services.iter().filter(|service| {
        let name = service.name.as_str();
        // A service with the name of a tool cannot be called by the operator.
        !tools.iter().any(|tool| tool.as_str() == name)
            && may_use(services, caller, name, now).is_ok()
    });
    let usable = usable.map(|service| ServiceOffer {
        name: service.name.as_str().to_owned(),
        tool: service.tool.clone(),
        fixed: service.with.clone(),
        conditions: service.conditions.clone(),
    });
    named.chain(usable).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const KEY: &str = "0123456789ABCDEF0123456789ABCDEF01234567";

    /// Returns the decision on a consumer's call to one of these services with these arguments.
    fn asked(name: &str, arguments: &Value) -> Decision {
        let services = json!({
            "machine": "vault",
            "services": [
                {"name": "release", "tool": "gpg_sign", "consumers": ["dev"], "with": {"key_id": KEY}},
                {"name": "sign", "tool": "gpg_sign", "consumers": ["dev"]},
                {"name": "push", "tool": "file_accept", "consumers": ["dev"], "with": {"path": "in"}},
            ]
        });
        let services: Services = serde_json::from_value(services).unwrap();
        let request = Request {
            caller: &Caller::Consumer("dev".parse().unwrap()),
            name,
            arguments: &Arc::new(arguments.as_object().unwrap().clone()),
            now: Timestamp::UNIX_EPOCH,
        };
        decide(&services, request)
    }

    #[track_caller]
    fn is_allowed(name: &str, arguments: &Value, expected: &Value) {
        match asked(name, arguments) {
            Decision::Allowed(grant) => {
                assert_eq!(Some(grant.arguments()), expected.as_object());
            }
            Decision::Denied(why) => panic!("{arguments}: {why:?}"),
        }
    }

    #[track_caller]
    fn is_no_choice(name: &str, arguments: &Value) {
        let decision = asked(name, arguments);
        let denied = matches!(decision, Decision::Denied(Denial::FixedArgument { .. }));
        assert!(denied, "{arguments}: {decision:?}");
    }

    #[test]
    fn a_fixed_argument_may_be_repeated_and_not_changed() {
        is_allowed(
            "push",
            &json!({"data": "aGk="}),
            &json!({"data": "aGk=", "path": "in"}),
        );
        is_allowed("push", &json!({"path": "in"}), &json!({"path": "in"}));
        is_no_choice("push", &json!({"path": "out"}));
        // The case of a fingerprint does not matter.
        let fixed = json!({"key_id": KEY});
        is_allowed("release", &json!({"key_id": KEY}), &fixed);
        is_allowed("release", &json!({"key_id": KEY.to_lowercase()}), &fixed);
        is_no_choice("release", &json!({"key_id": "F".repeat(40)}));
        is_no_choice("release", &json!({"key_id": 7}));
        // Other arguments are case-sensitive.
        is_no_choice("push", &json!({"path": "IN"}));
    }

    #[test]
    fn a_fixed_argument_rules_out_the_one_that_would_replace_it() {
        let may = |caller: &Caller, fixed: Value, argument: &str| {
            let fixed = fixed.as_object().unwrap();
            may_choose(caller, &ToolName::ClipboardSet.into(), fixed, argument)
        };
        let dev = Caller::Consumer("dev".parse().unwrap());
        for caller in [&dev, &Caller::Operator] {
            assert!(may(caller, json!({}), "content") && may(caller, json!({}), "image"));
            for fixed in ["content", "image"] {
                let with = json!({fixed: "x"});
                assert!(!may(caller, with.clone(), "content"));
                assert!(!may(caller, with, "image"));
            }
        }
        assert!(may(&Caller::Operator, json!({}), OFFER_TO));
        assert!(!may(&dev, json!({}), OFFER_TO));
    }

    #[test]
    fn an_argument_that_is_null_was_not_sent() {
        let fixed = json!({"path": "in"});
        is_allowed("push", &json!({"path": null, "offset": null}), &fixed);
        is_allowed("sign", &json!({"key_id": null}), &json!({}));
        let sent = json!({"key_id": null, "final": false});
        let request = Request {
            caller: &Caller::Operator,
            name: "gpg_sign",
            arguments: &Arc::new(sent.as_object().unwrap().clone()),
            now: Timestamp::UNIX_EPOCH,
        };
        let services = Services::none("vault".parse().unwrap());
        let Decision::Allowed(grant) = decide(&services, request) else {
            panic!("denied");
        };
        assert_eq!(
            grant.arguments(),
            json!({"final": false}).as_object().unwrap()
        );
    }

    #[test]
    fn which_key_signs_is_never_a_consumer_s_choice() {
        is_no_choice("sign", &json!({"key_id": KEY}));
        assert!(operator_only(ToolName::GpgSign, "key_id"));
        assert!(!operator_only(ToolName::GpgSign, "data"));
        assert!(!operator_only(ToolName::FileAccept, "key_id"));
    }

    #[test]
    fn a_caller_is_written_by_its_name_and_the_operator_by_one_that_no_machine_has() {
        let consumer = Caller::Consumer("dev".parse().unwrap());
        assert_eq!(consumer.to_string(), "dev");
        assert_eq!(Caller::Operator.to_string(), "(operator)");
        assert!("(operator)".parse::<MachineName>().is_err());
    }
}
