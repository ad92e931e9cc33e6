"""Which lanes does the traffic call for, who goes into which, and which lane's head is worth most now?"""
