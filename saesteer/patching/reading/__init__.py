"""Reading without patching: answers, logit lens, direct attribution, attention."""
