//! SSH: from a captured connection to judged, recorded and masked channels.
