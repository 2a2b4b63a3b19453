"""Do synthetic images help a classifier, compared with what people use today?"""
