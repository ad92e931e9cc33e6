"""The OpenAI wire: which path means what, what a body and its headers say, what is sent on and what comes back."""
